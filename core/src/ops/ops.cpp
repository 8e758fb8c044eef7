#include "slim/ops.hpp"

#include <torch/library.h>

#include <algorithm>
#include <atomic>

#include "ops/call.h"

namespace slim::ops {
namespace {

// Rows converted to fp32 at a time: enough for an efficient product, small beside the weights of a block.
constexpr int64_t kRowsPerChunk = 4096;

template <class F>
void for_each_float_chunk(const at::Tensor& x, F&& f) {
  for (int64_t begin = 0; begin < x.size(0); begin += kRowsPerChunk) {
    f(x.narrow(0, begin, std::min(kRowsPerChunk, x.size(0) - begin)).to(at::kFloat));
  }
}

// Only blocks on and above the diagonal are multiplied: half the work, and the mirrored result is exactly symmetric.
constexpr int64_t kGramBlock = 1024;

void gram_reference(at::Tensor acc, const at::Tensor& x) {
  const int64_t features = acc.size(0);
  const auto for_each_block = [&](auto&& f) {
    for (int64_t begin = 0; begin < features; begin += kGramBlock) f(begin, std::min(kGramBlock, features - begin));
  };
  for_each_float_chunk(x, [&](const at::Tensor& rows) {
    for_each_block([&](int64_t begin, int64_t size) {
      at::Tensor above = acc.narrow(0, 0, begin + size).narrow(1, begin, size);
      above.addmm_(rows.narrow(1, 0, begin + size).t(), rows.narrow(1, begin, size));
    });
  });
  for_each_block([&](int64_t begin, int64_t size) {
    at::Tensor on = acc.narrow(0, begin, size).narrow(1, begin, size);
    on.copy_(on.triu() + on.triu(1).t());
    if (begin > 0) acc.narrow(0, begin, size).narrow(1, 0, begin).copy_(acc.narrow(0, 0, begin).narrow(1, begin, size).t());
  });
}

void channel_moments_reference(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max,
                               const at::Tensor& x) {
  for_each_float_chunk(x, [&](const at::Tensor& rows) {
    sum_abs.add_(rows.abs().sum(0));
    sum_square.add_(rows.square().sum(0));
    const auto [low, high] = at::aminmax(rows, 0);
    at::minimum_out(min, min, low);
    at::maximum_out(max, max, high);
  });
}

std::atomic<bool> forced{false};

}  // namespace

void force_reference(bool forced_now) { forced.store(forced_now, std::memory_order_relaxed); }
bool reference_forced() { return forced.load(std::memory_order_relaxed); }

std::vector<std::string> operator_names() {
  std::vector<std::string> names;
  const std::string space = "slim::";
  for (const c10::OperatorName& op : c10::Dispatcher::singleton().getAllOpNames()) {
    if (op.name.starts_with(space)) names.push_back(op.name.substr(space.size()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void gram_(at::Tensor acc, const at::Tensor& x) {
  static const Operator<void(at::Tensor, const at::Tensor&)> op("slim::gram_");
  op(std::move(acc), x);
}

void channel_moments_(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max, const at::Tensor& x) {
  static const Operator<void(at::Tensor, at::Tensor, at::Tensor, at::Tensor, const at::Tensor&)> op("slim::channel_moments_");
  op(std::move(sum_abs), std::move(sum_square), std::move(min), std::move(max), x);
}

}  // namespace slim::ops

TORCH_LIBRARY(slim, m) {
  m.def("gram_(Tensor(a!) acc, Tensor x) -> ()");
  m.def("channel_moments_(Tensor(a!) sum_abs, Tensor(b!) sum_square, Tensor(c!) min, Tensor(d!) max, Tensor x) -> ()");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("gram_", slim::ops::gram_reference);
  m.impl("channel_moments_", slim::ops::channel_moments_reference);
}
