#include "slim/phase.hpp"

#include <atomic>
#include <chrono>

namespace slim {
namespace {

std::array<std::atomic<int64_t>, kPhases> nanoseconds{};
thread_local PhaseTimer* running = nullptr;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void count(Phase phase, int64_t begin, int64_t end) {
  nanoseconds[static_cast<size_t>(phase)].fetch_add(end - begin, std::memory_order_relaxed);
}

}  // namespace

std::string_view phase_name(Phase phase) {
  constexpr std::array<std::string_view, kPhases> kNames = {
      "reading",      "forward passes", "statistics", "factors", "scale search", "range search",
      "column sweep", "rounding",       "encoding",   "writing", "proof",        "spilling"};
  return kNames.at(static_cast<size_t>(phase));
}

PhaseSeconds phase_seconds() {
  PhaseSeconds seconds{};
  for (size_t i = 0; i < kPhases; ++i) seconds[i] = static_cast<double>(nanoseconds[i].load()) * 1e-9;
  return seconds;
}

PhaseTimer::PhaseTimer(Phase phase) : phase_(phase), outer_(running), begin_(now()) {
  if (outer_) count(outer_->phase_, outer_->begin_, begin_);
  running = this;
}

PhaseTimer::~PhaseTimer() {
  const int64_t end = now();
  count(phase_, begin_, end);
  running = outer_;
  if (outer_) outer_->begin_ = end;
}

}  // namespace slim
