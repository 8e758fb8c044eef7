// What AWQ evaluates for many candidates: memory and threads around the kernels.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/arguments.hpp"
#include "common/scale_losses.hpp"
#include "in_use.h"

namespace slim::cpu {
namespace {

using namespace kernels;

constexpr int64_t kGroupRows = 16, kLargestGroup = 256;  // of the kernel gram_ranges

std::tuple<at::Tensor, at::Tensor> gram_ranges(const at::Tensor& input, const at::Tensor& blocks,
                                               int64_t bits, bool e4m3, bool symmetric,
                                               at::ScalarType scale_dtype) {
  const int64_t group = blocks.size(-1), groups = blocks.size(0);
  if (group % 16 != 0 || group > kLargestGroup || input.scalar_type() != at::kFloat) {
    return reference<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, int64_t, bool,
                                                        bool, at::ScalarType)>(
        "slim::gram_ranges", input, blocks, bits, e4m3, symmetric, scale_dtype);
  }
  const at::Tensor weight = with_contiguous_rows(input);
  const int64_t rows = weight.size(0), tiles = ceil_div(rows, kGroupRows);
  TORCH_CHECK(weight.size(1) == groups * group, "gram_ranges: ", groups, " blocks of ", group, " for ",
              weight.size(1), " channels");
  // δ B δᵀ takes half the products when every pair of channels is met once.
  const at::Tensor triangles = (blocks.triu() + blocks.triu(1)).contiguous();
  at::Tensor low = at::empty({rows, groups}, at::kFloat), high = at::empty_like(low);
  const CodeRange codes = code_range(bits, e4m3, symmetric);
  const Float type = float_type(scale_dtype);
  const float *const w = weight.const_data_ptr<float>(), *const triangle = triangles.const_data_ptr<float>();
  float *const lows = low.mutable_data_ptr<float>(), *const highs = high.mutable_data_ptr<float>();
  at::parallel_for(0, groups * tiles, 4, [&](int64_t begin, int64_t end) {
    float ends[2][kGroupRows];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / tiles, row = i % tiles * kGroupRows,
                    count = std::min(kGroupRows, rows - row);  // a block serves many tiles
      kernels_in_use().gram_ranges(w + row * weight.stride(0) + g * group, weight.stride(0), count, group,
                                   triangle + g * group * group, codes, type, ends[0], ends[1]);
      for (int64_t r = 0; r < count; ++r) {
        lows[(row + r) * groups + g] = ends[0][r];
        highs[(row + r) * groups + g] = ends[1][r];
      }
    }
  });
  return {low, high};
}

at::Tensor scale_losses(const at::Tensor& input, const at::Tensor& scales_in, const OptionalTensor& gram,
                        const OptionalTensor& inputs, int64_t unit_columns, int64_t bits, bool e4m3,
                        bool symmetric, at::ScalarType scale_dtype, const OptionalTensor& importance,
                        double max_shrink, double norm, int64_t steps) {
  const at::Tensor weight = input.to(at::kFloat).contiguous(), scales = scales_in.to(at::kFloat).contiguous();
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const at::Tensor channel_weights = importance ? (*importance / scales.square()).contiguous() : at::Tensor();
  const CodeRange codes = code_range(bits, e4m3, symmetric);
  const Float type = float_type(scale_dtype);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns));
  return losses_of_candidates(
      weight, scales.size(0), gram, inputs, [&](int64_t first, int64_t count, float* to) {
        at::parallel_for(0, count * rows, grain, [&](int64_t begin, int64_t end) {
          std::vector<float> scratch(static_cast<size_t>(columns));
          for (int64_t i = begin; i < end; ++i) {
            const int64_t candidate = first + i / rows;
            const Shrink shrink{importance ? floats(channel_weights) + candidate * columns : nullptr,
                                max_shrink, norm, steps};
            kernels_in_use().scaled_error(
                floats(weight) + i % rows * columns, floats(scales) + candidate * columns, columns,
                std::min(unit_columns, columns), shrink, codes, type, scratch.data(), to + i * columns);
          }
        });
      });
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CPU, m) {
  m.impl("gram_ranges", gram_ranges);
  m.impl("scale_losses", scale_losses);
}

}  // namespace slim::cpu
