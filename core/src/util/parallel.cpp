#include "slim/parallel.hpp"

#include <torch/csrc/stable/c/shim.h>

#include <atomic>
#include <exception>
#include <stdexcept>

namespace slim {
namespace {

std::atomic<int64_t> calls{0}, shared{0}, parts{0};

struct Call {
  Call(detail::ParallelPart part_of, void* context_of) : part(part_of), context(context_of) {}
  detail::ParallelPart part;
  void* context;
  std::atomic<int64_t> parts{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error;  // of the part that set `failed`
};

/// LibTorch's loop is behind a C function: nothing may be thrown through it.
void run_part(int64_t first, int64_t last, void* context) {
  auto& call = *static_cast<Call*>(context);
  call.parts.fetch_add(1, std::memory_order_relaxed);
  try {
    call.part(call.context, first, last);
  } catch (...) {
    if (!call.failed.test_and_set()) call.error = std::current_exception();
  }
}

}  // namespace

ParallelCounts parallel_counts() { return {calls.load(), shared.load(), parts.load()}; }

void detail::run_parallel(int64_t begin, int64_t end, int64_t grain, ParallelPart part, void* context) {
  if (begin >= end) return;
  Call call(part, context);
  if (torch_parallel_for(begin, end, grain, run_part, &call) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("LibTorch could not start a parallel loop");
  calls.fetch_add(1, std::memory_order_relaxed);
  parts.fetch_add(call.parts, std::memory_order_relaxed);
  if (call.parts > 1) shared.fetch_add(1, std::memory_order_relaxed);
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace slim
