// The column sweep of GPTQ and SparseGPT: rows shared out between threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/arguments.hpp"
#include "in_use.h"

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
  at::parallel_for(0, ceil_div(all.rows, kSweepRows), 1, [&](int64_t begin, int64_t end) {
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

}  // namespace

TORCH_LIBRARY_IMPL(slim, CPU, m) { m.impl("column_sweep_", column_sweep_); }

}  // namespace slim::cpu
