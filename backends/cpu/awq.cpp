// What AWQ evaluates for many candidates: memory and threads around the kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/arguments.hpp"
#include "common/scale_losses.hpp"
#include "in_use.h"
#include "slim/parallel.hpp"

namespace slim::cpu {
namespace {

using namespace kernels;

std::tuple<at::Tensor, at::Tensor> gram_ranges(const at::Tensor& input, const at::Tensor& blocks,
                                               const OptionalTensor& coupling_input, int64_t bits, bool e4m3,
                                               bool symmetric, at::ScalarType scale_dtype) {
  const int64_t group = blocks.size(-1), groups = blocks.size(0);
  if (group % kPanelColumns != 0 || group > kLargestGroup || input.scalar_type() != at::kFloat) {
    return reference<std::tuple<at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const OptionalTensor&, int64_t, bool, bool, at::ScalarType)>(
        "slim::gram_ranges", input, blocks, coupling_input, bits, e4m3, symmetric, scale_dtype);
  }
  const at::Tensor weight = with_contiguous_rows(input);
  const at::Tensor coupling = coupling_input ? with_contiguous_rows(*coupling_input) : at::Tensor();
  const int64_t rows = weight.size(0), tiles = ceil_div(rows, kSearchRows);
  TORCH_CHECK(weight.size(1) == groups * group, "gram_ranges: ", groups, " blocks of ", group, " for ",
              weight.size(1), " channels");
  // δ B δᵀ takes half the products when every pair of channels is met once.
  const at::Tensor triangles = in_panels(blocks.triu() + blocks.triu(1));
  at::Tensor low = at::empty({groups, rows}, at::kFloat), high = at::empty_like(low);
  const CodeRange codes = code_range(bits, e4m3, symmetric);
  parallel_for(0, groups * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / tiles, row = i % tiles * kSearchRows;  // a block serves many tiles
      SearchRows part{floats(weight) + row * weight.stride(0) + g * group,
                      nullptr,
                      weight.stride(0),
                      0,
                      std::min(kSearchRows, rows - row),
                      low.mutable_data_ptr<float>() + g * rows + row,
                      high.mutable_data_ptr<float>() + g * rows + row};
      if (coupling.defined()) {
        part.coupling = floats(coupling) + row * coupling.stride(0) + g * group;
        part.coupling_stride = coupling.stride(0);
      }
      kernels_in_use().gram_ranges({group, floats(triangles) + g * group * group}, part, codes,
                                   float_type(scale_dtype));
    }
  });
  return {low.t().contiguous(), high.t().contiguous()};
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
        parallel_for(0, count * rows, grain, [&](int64_t begin, int64_t end) {
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
