// The column sweep of GPTQ and SparseGPT: rows shared out between threads.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/arguments.hpp"
#include "in_use.h"
#include "slim/parallel.hpp"

namespace slim::cpu {
namespace {

using namespace kernels;

constexpr int64_t kSweepRows = 32;  // of one tile of the kernel

void column_sweep_(at::Tensor weight, at::Tensor errors, at::Tensor codes, const at::Tensor& factor,
                   const OptionalTensor& scale, const OptionalTensor& zero, const OptionalTensor& group,
                   int64_t min_code, int64_t max_code, int64_t keep, int64_t of) {
  if (weight.numel() == 0) return;
  const at::Tensor transposed = factor.t().contiguous();
  at::Tensor used_scale, used_zero, used_group;
  kernels::Sweep sweep{transposed.const_data_ptr<float>(),
                       nullptr,
                       nullptr,
                       nullptr,
                       weight.size(1),
                       0,
                       static_cast<float>(min_code),
                       static_cast<float>(max_code),
                       keep,
                       of};
  kernels::SweepRows all{weight.mutable_data_ptr<float>(),
                         errors.mutable_data_ptr<float>(),
                         nullptr,
                         weight.stride(0),
                         errors.stride(0),
                         0,
                         0,
                         weight.size(0)};
  if (scale && scale->defined()) {
    // Only the groups that the block uses: their scales then lie together.
    const int64_t first = group->min().item<int64_t>(), count = group->max().item<int64_t>() + 1 - first;
    TORCH_CHECK(first >= 0 && first + count <= scale->size(1),
                "column_sweep_: group names a column that scale does not have");
    used_group = (*group - first).to(at::kInt).contiguous();
    used_scale = scale->narrow(1, first, count).contiguous();
    if (zero && zero->defined()) used_zero = zero->narrow(1, first, count).contiguous();
    sweep.scale = floats(used_scale);
    sweep.zero = floats(used_zero);
    sweep.group = used_group.const_data_ptr<int32_t>();
    sweep.groups = count;
    all.codes = codes.mutable_data_ptr<int8_t>();
    all.codes_stride = codes.stride(0);
  }
  const Kernels& k = kernels_in_use();
  parallel_for(0, ceil_div(all.rows, kSweepRows), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k.sweep_scratch(sweep));
    kernels::SweepRows rows = all;
    rows.row = begin * kSweepRows;
    rows.rows = std::min(end * kSweepRows, all.rows) - rows.row;
    rows.weight += rows.row * rows.weight_stride;
    rows.errors += rows.row * rows.errors_stride;
    if (rows.codes) rows.codes += rows.row * rows.codes_stride;
    k.sweep(sweep, rows, scratch.data());
  });
}

std::tuple<at::Tensor, at::Tensor> sweep_ranges(const at::Tensor& input, const at::Tensor& factor,
                                                int64_t bits, bool symmetric, at::ScalarType scale_dtype) {
  const int64_t columns = input.size(1), rows = input.size(0);
  if (columns > kLargestGroup || input.scalar_type() != at::kFloat) {
    return reference<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, int64_t, bool,
                                                        at::ScalarType)>("slim::sweep_ranges", input, factor,
                                                                         bits, symmetric, scale_dtype);
  }
  const at::Tensor weight = with_contiguous_rows(input), panels = in_panels(factor.triu());
  const at::Tensor reciprocal = factor.diagonal().reciprocal().contiguous();
  const SweepSearch search{columns, floats(panels), floats(reciprocal), bits > 3 ? 0.5 : 0.3};
  at::Tensor low = at::empty({rows, 1}, at::kFloat), high = at::empty_like(low);
  const CodeRange codes = code_range(bits, false, symmetric);
  parallel_for(0, ceil_div(rows, kSearchRows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kSearchRows; row < std::min(end * kSearchRows, rows); row += kSearchRows) {
      const SearchRows part{floats(weight) + row * weight.stride(0),
                            nullptr,
                            weight.stride(0),
                            0,
                            std::min(kSearchRows, rows - row),
                            low.mutable_data_ptr<float>() + row,
                            high.mutable_data_ptr<float>() + row};
      kernels_in_use().sweep_ranges(search, part, codes, float_type(scale_dtype));
    }
  });
  return {low, high};
}

}  // namespace

at::Tensor in_panels(const at::Tensor& matrices) {
  const int64_t columns = matrices.size(-1),
                missing = ceil_div(columns, kPanelColumns) * kPanelColumns - columns;
  const at::Tensor padded = missing > 0 ? at::constant_pad_nd(matrices, {0, missing}) : matrices;
  return padded.unflatten(-1, {-1, kPanelColumns}).transpose(-3, -2).contiguous();
}

TORCH_LIBRARY_IMPL(slim, CPU, m) {
  m.impl("column_sweep_", column_sweep_);
  m.impl("sweep_ranges", sweep_ranges);
}

}  // namespace slim::cpu
