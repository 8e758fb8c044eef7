#include "slim/parallel.hpp"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace slim;

namespace {
/// So many threads while it lives.
struct Threads {
  explicit Threads(int count) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }
  int before_ = at::get_num_threads();
};
}  // namespace

TEST_CASE("parallel/ the parts cover the range once, for any number of threads") {
  for (const int threads : {1, 2, 3, 7}) {
    const Threads scope(threads);
    for (const int64_t size : {0, 1, 2, 5, 64, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(size));
      parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      for (const auto& count : visits) CHECK(count == 1);
    }
  }
}

TEST_CASE("parallel/ work enters as many threads as LibTorch is told to use") {
  for (const int threads : {1, 2, 3}) {
    const Threads scope(threads);
    std::mutex mutex;
    std::set<std::thread::id> entered;
    const ParallelCounts before = parallel_counts();
    parallel_for(0, 300, 1, [&](int64_t, int64_t) {
      const std::lock_guard lock(mutex);
      entered.insert(std::this_thread::get_id());
    });
    const ParallelCounts after = parallel_counts();
    CHECK(entered.size() == static_cast<size_t>(threads));
    CHECK(after.calls == before.calls + 1);
    CHECK(after.parts == before.parts + threads);
    CHECK(after.shared == before.shared + (threads > 1));
  }
}

TEST_CASE("parallel/ a range of at most the grain, and one inside another loop, is one part") {
  const Threads scope(2);
  const ParallelCounts before = parallel_counts();
  parallel_for(0, 8, 8, [](int64_t, int64_t) {});
  CHECK(parallel_counts().parts == before.parts + 1);
  std::atomic<int64_t> inner_parts{0};
  parallel_for(0, 2, 1,
               [&](int64_t, int64_t) { parallel_for(0, 100, 1, [&](int64_t, int64_t) { ++inner_parts; }); });
  CHECK(inner_parts == 2);
}

TEST_CASE("parallel/ what a part throws arrives in the calling thread, and the next loop works") {
  const Threads scope(2);
  const auto fails = [] {
    parallel_for(0, 100, 1, [](int64_t, int64_t end) {
      if (end == 100) throw std::out_of_range("the last part");
    });
  };
  CHECK_THROWS_AS(fails(), std::out_of_range);
  std::atomic<int64_t> sum{0};
  parallel_for(0, 100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  CHECK(sum == 100);
}
