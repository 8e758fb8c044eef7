#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

#include "slim/export.hpp"

namespace slim {

/// Calls f(first, last) for parts of [begin, end) that cover it once, on as many threads as LibTorch uses (at::set_num_threads). Every
/// part has at least `grain` items, but for the last; a range of at most `grain` items, or one inside another parallel_for, is one part
/// on the calling thread. Returns when all parts are done. The first exception of f is thrown again in the calling thread.
///
/// Use it in place of at::parallel_for, which is a loop on one thread in every library that is compiled without -fopenmp.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f);

/// How parallel_for() calls have been shared out so far, in the whole process: what a test looks at to see that work really enters more than
/// one thread.
struct ParallelCounts {
  int64_t calls = 0;   ///< with a range that was not empty
  int64_t shared = 0;  ///< of them, those of several parts
  int64_t parts = 0;   ///< of all
};
/// Reads the counts. Safe from any thread.
SLIM_API ParallelCounts parallel_counts();

namespace detail {
using ParallelPart = void (*)(void* context, int64_t first, int64_t last);
SLIM_API void run_parallel(int64_t begin, int64_t end, int64_t grain, ParallelPart part, void* context);
}  // namespace detail

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f) {
  using Function = std::remove_reference_t<F>;
  detail::run_parallel(
      begin, end, grain,
      [](void* context, int64_t first, int64_t last) { (*static_cast<Function*>(context))(first, last); },
      const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

}  // namespace slim
