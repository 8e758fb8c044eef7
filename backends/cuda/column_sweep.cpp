// The column sweep of GPTQ and SparseGPT.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "common/arguments.hpp"
#include "device.h"
#include "launch.hpp"

namespace slim::cuda {
namespace {

using namespace kernels;

void column_sweep_(at::Tensor weight, at::Tensor errors, at::Tensor codes, const at::Tensor& factor_in,
                   const OptionalTensor& scale_in, const OptionalTensor& zero_in,
                   const OptionalTensor& group_in, int64_t min_code, int64_t max_code, int64_t keep,
                   int64_t of) {
  if (weight.numel() == 0) return;
  const at::Tensor factor = with_contiguous_rows(factor_in);
  const bool coded = scale_in && scale_in->defined();
  const at::Tensor scale = coded ? with_contiguous_rows(*scale_in) : at::Tensor();
  const at::Tensor zero =
      coded && zero_in && zero_in->defined() ? with_contiguous_rows(*zero_in) : at::Tensor();
  const at::Tensor group = coded ? group_in->contiguous() : at::Tensor();
  const DeviceSweep sweep{factor.const_data_ptr<float>(),
                          factor.stride(0),
                          weight.size(1),
                          coded ? scale.const_data_ptr<float>() : nullptr,
                          zero.defined() ? zero.const_data_ptr<float>() : nullptr,
                          coded ? scale.stride(0) : 0,
                          zero.defined() ? zero.stride(0) : 0,
                          coded ? group.const_data_ptr<int32_t>() : nullptr,
                          static_cast<float>(min_code),
                          static_cast<float>(max_code),
                          keep,
                          of,
                          weight.mutable_data_ptr<float>(),
                          errors.mutable_data_ptr<float>(),
                          coded ? codes.mutable_data_ptr<int8_t>() : nullptr,
                          weight.stride(0),
                          errors.stride(0),
                          coded ? codes.stride(0) : 0};
  check(launch_sweep(sweep, weight.size(0)));
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CUDA, m) { m.impl("column_sweep_", column_sweep_); }

}  // namespace slim::cuda
