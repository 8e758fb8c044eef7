// Statistics of activations that need one pass: memory and threads around the kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "common/arguments.hpp"
#include "in_use.h"
#include "slim/parallel.hpp"

namespace slim::cpu {
namespace {

using namespace kernels;

/// Values that are worth a thread's tables of counts.
constexpr int64_t kHistogramGrain = int64_t{1} << 18;

void channel_moments_(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max,
                      const at::Tensor& input) {
  const at::Tensor x = with_contiguous_rows(input);
  const int64_t rows = x.size(0), columns = x.size(1);
  for (const at::Tensor* sum : {&sum_abs, &sum_square, &min, &max}) {
    TORCH_CHECK(sum->is_contiguous() && sum->scalar_type() == at::kFloat && sum->numel() == columns,
                "channel_moments_: sums are fp32 [features]");
  }
  const Matrix from = matrix(x);
  float *const abs = sum_abs.mutable_data_ptr<float>(), *const square = sum_square.mutable_data_ptr<float>();
  float *const low = min.mutable_data_ptr<float>(), *const high = max.mutable_data_ptr<float>();
  constexpr int64_t kColumns = 64;  // a cache line or two of each row
  parallel_for(0, ceil_div(columns, kColumns),
               std::max<int64_t>(1, kGrain / std::max<int64_t>(1, rows * kColumns)),
               [&](int64_t begin, int64_t end) {
                 kernels_in_use().moments(from, rows, begin * kColumns, std::min(end * kColumns, columns),
                                          abs, square, low, high);
               });
}

/// Counts of one thread, added to those of all: sums of integers, the same in any order.
std::tuple<at::Tensor, at::Tensor> histogram(const at::Tensor& input, int64_t exponent,
                                             int64_t bins_per_side) {
  const at::Tensor x = with_contiguous_rows(input);
  const int64_t rows = x.size(0), columns = x.size(1), bins = 2 * bins_per_side;
  const auto per_bin = static_cast<float>(std::ldexp(1.0, static_cast<int>(-exponent)));
  const int64_t rows_at_once =
      std::max<int64_t>(1, (int64_t{1} << 30) / columns);  // the kernel counts in 32 bits
  const Matrix from = matrix(x);
  at::Tensor counts = at::zeros({bins}, at::kLong), ends = at::empty({2}, at::kFloat);
  auto* const total = counts.mutable_data_ptr<int64_t>();
  auto* const extremes = ends.mutable_data_ptr<float>();
  extremes[0] = std::numeric_limits<float>::infinity();
  extremes[1] = -extremes[0];
  std::mutex mutex;
  parallel_for(0, rows, std::max<int64_t>(1, kHistogramGrain / columns), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> found(static_cast<size_t>(kernels::kHistogramTables * bins));
    for (int64_t row = begin; row < end; row += rows_at_once) {
      float found_ends[2];
      std::fill(found.begin(), found.end(), 0);
      kernels_in_use().histogram(from, row, std::min(end, row + rows_at_once), per_bin, bins_per_side,
                                 found.data(), found_ends);
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < found.size(); ++i) total[static_cast<int64_t>(i) % bins] += found[i];
      const bool has_nan = extremes[0] != extremes[0] || found_ends[0] != found_ends[0];
      extremes[0] = has_nan ? NAN : std::min(extremes[0], found_ends[0]);
      extremes[1] = has_nan ? NAN : std::max(extremes[1], found_ends[1]);
    }
  });
  return {counts, ends};
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CPU, m) {
  m.impl("channel_moments_", channel_moments_);
  m.impl("histogram", histogram);
}

}  // namespace slim::cpu
