// Statistics of activations: Gram matrices by cuBLAS through LibTorch, the others by the grids of launch.cu.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "common/arguments.hpp"
#include "device.h"
#include "launch.hpp"

namespace slim::cuda {
namespace {

using namespace kernels;

/// Blocks on and above the diagonal are multiplied; the mirrored result is exactly symmetric. bf16 and fp16 are not widened first.
void gram_(at::Tensor acc, const at::Tensor& x) {
  constexpr int64_t kBlock = 2048;
  const int64_t features = acc.size(0);
  for (int64_t begin = 0; begin < features; begin += kBlock) {
    const int64_t size = std::min(kBlock, features - begin);
    at::Tensor above = acc.narrow(0, 0, begin + size).narrow(1, begin, size);
    const at::Tensor left = x.narrow(1, 0, begin + size).t(), right = x.narrow(1, begin, size);
    if (x.scalar_type() == at::kFloat) {
      above.addmm_(left, right);
    } else {
      above.copy_(at::addmm(above.contiguous(), left, right, at::kFloat));
    }
  }
  for (int64_t begin = 0; begin < features; begin += kBlock) {
    const int64_t size = std::min(kBlock, features - begin);
    at::Tensor diagonal = acc.narrow(0, begin, size).narrow(1, begin, size);
    diagonal.copy_(diagonal.triu() + diagonal.triu(1).t());
    if (begin > 0)
      acc.narrow(0, begin, size)
          .narrow(1, 0, begin)
          .copy_(acc.narrow(0, 0, begin).narrow(1, begin, size).t());
  }
}

void channel_moments_(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max,
                      const at::Tensor& input) {
  const at::Tensor x = with_contiguous_rows(input);
  const at::Tensor partial =
      at::empty({4, ceil_div(x.size(0), kMomentRows), x.size(1)}, x.options().dtype(at::kFloat));
  check(launch_moments(matrix(x), partial.mutable_data_ptr<float>()));
  sum_abs.add_(partial[0].sum(0));
  sum_square.add_(partial[1].sum(0));
  at::minimum_out(min, min, partial[2].amin(0));
  at::maximum_out(max, max, partial[3].amax(0));
}

std::tuple<at::Tensor, at::Tensor> histogram(const at::Tensor& input, int64_t exponent,
                                             int64_t bins_per_side) {
  if (bins_per_side > kMostBins) {
    return reference<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, int64_t, int64_t)>(
        "slim::histogram", input, exponent, bins_per_side);
  }
  const at::Tensor x = with_contiguous_rows(input);
  at::Tensor counts = at::zeros({2 * bins_per_side}, x.options().dtype(at::kLong));
  const at::Tensor ends = at::empty({kHistogramWarps, 2}, x.options().dtype(at::kFloat));
  check(launch_histogram(matrix(x), static_cast<float>(std::ldexp(1.0, static_cast<int>(-exponent))),
                         bins_per_side, counts.mutable_data_ptr<int64_t>(), ends.mutable_data_ptr<float>()));
  return {counts, at::stack({ends.select(1, 0).amin(), ends.select(1, 1).amax()})};
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CUDA, m) {
  m.impl("gram_", gram_);
  m.impl("channel_moments_", channel_moments_);
  m.impl("histogram", histogram);
}

}  // namespace slim::cuda
