#include "slim/phase.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <set>
#include <string>
#include <thread>

using namespace slim;

namespace {
void wait() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }
double seconds(const PhaseSeconds& before, Phase phase) {
  return phase_seconds()[static_cast<size_t>(phase)] - before[static_cast<size_t>(phase)];
}
}  // namespace

TEST_CASE("phase/ every phase has a name of its own") {
  std::set<std::string> names;
  for (size_t i = 0; i < kPhases; ++i) names.insert(std::string(phase_name(static_cast<Phase>(i))));
  CHECK(names.size() == kPhases);
}

TEST_CASE("phase/ the time of an inner phase is not counted for the outer one") {
  const PhaseSeconds before = phase_seconds();
  const auto begin = std::chrono::steady_clock::now();
  {
    const PhaseTimer outer(Phase::kForward);
    wait();
    {
      const PhaseTimer inner(Phase::kStatistics);
      wait();
      wait();
    }
    wait();
  }
  const double all = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double outer = seconds(before, Phase::kForward), inner = seconds(before, Phase::kStatistics);
  CHECK(outer >= 0.04);
  CHECK(inner >= 0.04);
  CHECK(outer + inner <= all);
}

TEST_CASE("phase/ threads count each for itself") {
  const PhaseSeconds before = phase_seconds();
  const PhaseTimer here(Phase::kSweep);
  std::thread other([] {
    const PhaseTimer timer(Phase::kWriting);
    wait();
  });
  other.join();
  CHECK(seconds(before, Phase::kWriting) >= 0.02);
  CHECK(seconds(before, Phase::kSweep) == 0);  // it still runs
}
