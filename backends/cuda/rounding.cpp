// Ranges, codes and their error: memory around the grids of launch.cu.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "common/arguments.hpp"
#include "device.h"
#include "launch.hpp"

namespace slim::cuda {
namespace {

using namespace kernels;

/// One range for the whole tensor, shrunk: few numbers, which the host compares. ends [1, 2].
at::Tensor shrunk_tensor_ends(const at::Tensor& weight, const at::Tensor& ends, const DeviceSearch& search,
                              const CodeRange& range, Float scale_type) {
  at::Tensor best = ends, scale = at::empty({1}, ends.options()), zero = at::empty({1}, ends.options());
  at::Tensor errors = at::empty({weight.size(0)}, ends.options().dtype(at::kDouble));
  double best_error = 0;
  for (int64_t step = 0; step <= search.steps; ++step) {
    const at::Tensor candidate = ends * at::full({1}, search.ratio(step), ends.options());
    check(launch_params(matrix(candidate), {1, 2, 1}, 1, {}, range, scale_type,
                        scale.mutable_data_ptr<float>(), zero.mutable_data_ptr<float>()));
    check(launch_shared_errors(matrix(weight), search, range, floats(scale), floats(zero),
                               errors.mutable_data_ptr<double>()));
    const double error = errors.sum().item<double>();
    if (step > 0 && !(error < best_error)) continue;
    best_error = error;
    best = candidate;
  }
  return best;
}

using Pair = std::tuple<at::Tensor, at::Tensor>;
Pair choose_params(const at::Tensor& input, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3,
                   bool symmetric, at::ScalarType scale_dtype, const OptionalTensor& importance,
                   double max_shrink, double norm, int64_t steps, double abs_max) {
  const at::Tensor weight = with_contiguous_rows(input);
  const at::Tensor channels = importance ? importance->to(at::kFloat).contiguous() : at::Tensor();
  const DeviceSearch search{floats(channels), max_shrink, norm, steps};
  const DeviceUnits units = units_of(weight, unit_rows, unit_columns);
  const CodeRange range = code_range(bits, e4m3, symmetric);
  const Float type = float_type(scale_dtype);
  const at::Tensor scale =
      at::empty({ceil_div(weight.size(0), unit_rows), units.units}, weight.options().dtype(at::kFloat));
  const at::Tensor zero = range.symmetric ? at::Tensor() : at::empty_like(scale);
  if (weight.numel() == 0) return {scale, zero};
  float* const zeros = zero.defined() ? zero.mutable_data_ptr<float>() : nullptr;
  if (scale.numel() > 1) {
    check(launch_params(matrix(weight), units, scale.numel(), search, range, type,
                        scale.mutable_data_ptr<float>(), zeros));
    return {scale, zero};
  }
  // One unit would keep one warp busy: LibTorch reduces it with all of them.
  const auto extremes = at::aminmax(weight);
  at::Tensor ends = abs_max > 0 ? at::tensor({-abs_max, abs_max}, at::kFloat).to(weight.device())
                                : at::stack({std::get<0>(extremes), std::get<1>(extremes)}).to(at::kFloat);
  ends = ends.view({1, 2});
  if (steps > 0) ends = shrunk_tensor_ends(weight, ends, search, range, type);
  check(launch_params(matrix(ends), {1, 2, 1}, 1, {}, range, type, scale.mutable_data_ptr<float>(), zeros));
  return {scale, zero};
}

UnitParams params_for(const at::Tensor& x, const at::Tensor& scale, const OptionalTensor& zero,
                      int64_t unit_rows, int64_t unit_columns) {
  return unit_params(scale, zero, ceil_div(x.size(0), unit_rows), ceil_div(x.size(1), unit_columns));
}

at::Tensor encode_with(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero,
                       int64_t unit_rows, int64_t unit_columns, const CodeRange& range,
                       at::ScalarType arithmetic) {
  const at::Tensor weight = with_contiguous_rows(input);
  const UnitParams params = params_for(weight, scale, zero, unit_rows, unit_columns);
  at::Tensor codes =
      at::empty(weight.sizes(), weight.options().dtype(range.is_e4m3 ? at::kFloat8_e4m3fn : at::kChar));
  check(launch_encode(matrix(weight), units_of(weight, unit_rows, unit_columns), floats(params.scale),
                      floats(params.zero), range, float_type(arithmetic),
                      static_cast<uint8_t*>(codes.mutable_data_ptr())));
  return codes;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> round_units(
    const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3,
    bool symmetric, at::ScalarType scale_dtype, at::ScalarType arithmetic, const OptionalTensor& importance,
    double max_shrink, double norm, int64_t steps, double abs_max) {
  const auto [scale, zero] = choose_params(weight, unit_rows, unit_columns, bits, e4m3, symmetric,
                                           scale_dtype, importance, max_shrink, norm, steps, abs_max);
  const OptionalTensor zeros = zero.defined() ? OptionalTensor(zero) : std::nullopt;
  return {encode_with(weight, scale, zeros, unit_rows, unit_columns, code_range(bits, e4m3, symmetric),
                      arithmetic),
          scale, zero};
}

at::Tensor decode(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero,
                  int64_t unit_rows, int64_t unit_columns) {
  const at::Tensor codes = input.contiguous();
  const UnitParams params = params_for(codes, scale, zero, unit_rows, unit_columns);
  at::Tensor weight = at::empty(codes.sizes(), codes.options().dtype(at::kFloat));
  check(launch_decode(static_cast<const uint8_t*>(codes.const_data_ptr()), codes.size(0), codes.size(1),
                      units_of(codes, unit_rows, unit_columns), floats(params.scale), floats(params.zero),
                      range_of_codes(codes, zero), weight.mutable_data_ptr<float>()));
  return weight;
}

at::Tensor rounding_error(const at::Tensor& input, const at::Tensor& code_input, const at::Tensor& scale,
                          const OptionalTensor& zero, int64_t unit_rows, int64_t unit_columns) {
  const at::Tensor weight = with_contiguous_rows(input), codes = code_input.contiguous();
  const UnitParams params = params_for(weight, scale, zero, unit_rows, unit_columns);
  at::Tensor sums = at::empty({weight.size(0), 2}, weight.options().dtype(at::kDouble));
  check(launch_rounding_error(matrix(weight), static_cast<const uint8_t*>(codes.const_data_ptr()),
                              units_of(weight, unit_rows, unit_columns), floats(params.scale),
                              floats(params.zero), range_of_codes(codes, zero),
                              sums.mutable_data_ptr<double>()));
  return sums.sum(0).cpu();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> round_units_measured(
    const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3,
    bool symmetric, at::ScalarType scale_dtype, at::ScalarType arithmetic, const OptionalTensor& importance,
    double max_shrink, double norm, int64_t steps, double abs_max) {
  const auto [codes, scale, zero] =
      round_units(weight, unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype, arithmetic, importance,
                  max_shrink, norm, steps, abs_max);
  const OptionalTensor zeros = zero.defined() ? OptionalTensor(zero) : std::nullopt;
  return {codes, scale, zero, rounding_error(weight, codes, scale, zeros, unit_rows, unit_columns)};
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CUDA, m) {
  m.impl("choose_params", choose_params);
  m.impl("encode", encode<encode_with>);
  m.impl("cast_e4m3", cast_e4m3<encode_with>);
  m.impl("round_units", round_units);
  m.impl("round_units_measured", round_units_measured);
  m.impl("decode", decode);
  m.impl("rounding_error", rounding_error);
}

}  // namespace slim::cuda
