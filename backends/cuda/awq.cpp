// What AWQ evaluates for many candidates: memory around the grids of launch.cu.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "common/arguments.hpp"
#include "common/scale_losses.hpp"
#include "device.h"
#include "launch.hpp"

namespace slim::cuda {
namespace {

using namespace kernels;

std::tuple<at::Tensor, at::Tensor> gram_ranges(const at::Tensor& input, const at::Tensor& block_input,
                                               const OptionalTensor& coupling_input, int64_t bits, bool e4m3,
                                               bool symmetric, at::ScalarType scale_dtype) {
  const int64_t group = block_input.size(-1), groups = block_input.size(0);
  if (group > kLargestGroup || input.scalar_type() != at::kFloat) {
    return reference<std::tuple<at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const OptionalTensor&, int64_t, bool, bool, at::ScalarType)>(
        "slim::gram_ranges", input, block_input, coupling_input, bits, e4m3, symmetric, scale_dtype);
  }
  const at::Tensor weight = with_contiguous_rows(input), blocks = block_input.contiguous();
  const at::Tensor coupling = coupling_input ? coupling_input->contiguous() : at::Tensor();
  TORCH_CHECK(weight.size(1) == groups * group, "gram_ranges: ", groups, " blocks of ", group, " for ",
              weight.size(1), " channels");
  at::Tensor low = at::empty({weight.size(0), groups}, weight.options()), high = at::empty_like(low);
  check(launch_group_ranges(floats(weight), weight.size(0), weight.stride(0), groups, group, floats(blocks),
                            floats(coupling), code_range(bits, e4m3, symmetric), float_type(scale_dtype),
                            low.mutable_data_ptr<float>(), high.mutable_data_ptr<float>()));
  return {low, high};
}

at::Tensor scale_losses(const at::Tensor& input, const at::Tensor& scales_in, const OptionalTensor& gram,
                        const OptionalTensor& inputs, int64_t unit_columns, int64_t bits, bool e4m3,
                        bool symmetric, at::ScalarType scale_dtype, const OptionalTensor& importance,
                        double max_shrink, double norm, int64_t steps) {
  const at::Tensor weight = input.to(at::kFloat).contiguous(), scales = scales_in.to(at::kFloat).contiguous();
  const at::Tensor channels = importance ? (*importance / scales.square()).contiguous() : at::Tensor();
  const DeviceUnits units = units_of(weight, 1, std::min(unit_columns, weight.size(1)));
  return losses_of_candidates(
      weight, scales.size(0), gram, inputs, [&](int64_t first, int64_t count, float* to) {
        const int64_t skipped = first * weight.size(1);
        check(launch_scaled_errors(matrix(weight), units, count, floats(scales) + skipped,
                                   importance ? floats(channels) + skipped : nullptr,
                                   {nullptr, max_shrink, norm, steps}, code_range(bits, e4m3, symmetric),
                                   float_type(scale_dtype), to));
      });
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CUDA, m) {
  m.impl("gram_ranges", gram_ranges);
  m.impl("scale_losses", scale_losses);
}

}  // namespace slim::cuda
