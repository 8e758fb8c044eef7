// The cuda backend's operators: checks and memory around the grids of launch.cu.
#include "ops.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "launch.hpp"

namespace slim::cuda {
namespace {

using kernels::CodeRange;
using kernels::DeviceMatrix;
using kernels::DeviceUnits;
using kernels::Float;
using OptionalTensor = std::optional<at::Tensor>;

void check(const char* error) { TORCH_CHECK(error == nullptr, "CUDA: ", error); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Float float_type(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, "expected fp32, bf16 or fp16, found ", type);
  return type == at::kFloat ? Float::kFloat : type == at::kBFloat16 ? Float::kBFloat16 : Float::kHalf;
}

CodeRange code_range(int64_t bits, bool e4m3, bool symmetric) {
  if (e4m3) return {-448, 448, true, true};
  const auto half = static_cast<float>(int64_t{1} << (bits - 1));
  return {-half, half - 1, false, symmetric};
}

at::Tensor with_contiguous_rows(const at::Tensor& x) { return x.dim() == 2 && x.stride(1) == 1 ? x : x.contiguous(); }
DeviceMatrix matrix(const at::Tensor& x) { return {x.const_data_ptr(), float_type(x.scalar_type()), x.size(0), x.size(1), x.stride(0)}; }
DeviceUnits units_of(const at::Tensor& x, int64_t rows, int64_t columns) { return {rows, columns, ceil_div(x.size(1), columns)}; }
const float* floats(const OptionalTensor& x) { return x && x->defined() ? x->const_data_ptr<float>() : nullptr; }

template <class Signature, class... Arguments>
auto reference(const char* name, Arguments&&... arguments) {
  // No backend registers kernels for Meta, so that its entry is the reference, which works for any device.
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>().redispatch(
      c10::DispatchKeySet(c10::DispatchKey::Meta), std::forward<Arguments>(arguments)...);
}

using Pair = std::tuple<at::Tensor, at::Tensor>;
Pair choose_params(const at::Tensor& input, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3, bool symmetric,
                   at::ScalarType scale_dtype, const OptionalTensor& importance, double max_shrink, double norm, int64_t steps,
                   double abs_max) {
  if (steps > 0 || abs_max > 0 || input.numel() == 0) {  // a search is a few large operators, which LibTorch runs well
    using Signature = Pair(const at::Tensor&, int64_t, int64_t, int64_t, bool, bool, at::ScalarType, const OptionalTensor&, double, double, int64_t, double);
    return reference<Signature>("slim::choose_params", input, unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype, importance,
                                max_shrink, norm, steps, abs_max);
  }
  const at::Tensor weight = with_contiguous_rows(input);
  const DeviceUnits units = units_of(weight, unit_rows, unit_columns);
  const CodeRange range = code_range(bits, e4m3, symmetric);
  const at::Tensor scale = at::empty({ceil_div(weight.size(0), unit_rows), units.units}, weight.options().dtype(at::kFloat));
  const at::Tensor zero = range.symmetric ? at::Tensor() : at::empty_like(scale);
  check(launch_params(matrix(weight), units, scale.numel(), range, float_type(scale_dtype), scale.mutable_data_ptr<float>(),
                      zero.defined() ? zero.mutable_data_ptr<float>() : nullptr));
  return {scale, zero};
}

at::Tensor encode_with(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero, int64_t unit_rows, int64_t unit_columns,
                       const CodeRange& range, at::ScalarType arithmetic) {
  const at::Tensor weight = with_contiguous_rows(input), scales = scale.contiguous();
  const OptionalTensor zeros = zero ? OptionalTensor(zero->contiguous()) : std::nullopt;
  at::Tensor codes = at::empty(weight.sizes(), weight.options().dtype(range.is_e4m3 ? at::kFloat8_e4m3fn : at::kChar));
  check(launch_encode(matrix(weight), units_of(weight, unit_rows, unit_columns), scales.const_data_ptr<float>(), floats(zeros), range,
                      float_type(arithmetic), static_cast<uint8_t*>(codes.mutable_data_ptr())));
  return codes;
}

at::Tensor encode(const at::Tensor& weight, const at::Tensor& scale, const OptionalTensor& zero, int64_t unit_rows, int64_t unit_columns,
                  int64_t bits, at::ScalarType arithmetic) {
  return encode_with(weight, scale, zero, unit_rows, unit_columns, code_range(bits, false, !zero), arithmetic);
}

at::Tensor cast_e4m3(const at::Tensor& weight, const at::Tensor& scale, int64_t unit_rows, int64_t unit_columns, at::ScalarType arithmetic) {
  return encode_with(weight, scale, std::nullopt, unit_rows, unit_columns, code_range(8, true, true), arithmetic);
}

at::Tensor decode(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero, int64_t unit_rows, int64_t unit_columns) {
  const at::Tensor codes = input.contiguous(), scales = scale.contiguous();
  const OptionalTensor zeros = zero ? OptionalTensor(zero->contiguous()) : std::nullopt;
  at::Tensor weight = at::empty(codes.sizes(), codes.options().dtype(at::kFloat));
  check(launch_decode(static_cast<const uint8_t*>(codes.const_data_ptr()), codes.size(0), codes.size(1), units_of(codes, unit_rows, unit_columns),
                      scales.const_data_ptr<float>(), floats(zeros), code_range(8, codes.scalar_type() == at::kFloat8_e4m3fn, !zero),
                      weight.mutable_data_ptr<float>()));
  return weight;
}

at::Tensor pack_codes(const at::Tensor& input, int64_t bits) {
  const at::Tensor codes = input.contiguous();
  const int64_t words = ceil_div(codes.size(1) * bits, 32);
  at::Tensor packed = at::empty({codes.size(0), words}, codes.options().dtype(at::kInt));
  check(launch_pack(codes.const_data_ptr<int8_t>(), codes.size(0), codes.size(1), static_cast<int>(bits), words,
                    reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>())));
  return packed;
}

void column_sweep_(at::Tensor weight, at::Tensor errors, at::Tensor codes, const at::Tensor& factor_in, const OptionalTensor& scale_in,
                   const OptionalTensor& zero_in, const OptionalTensor& group_in, int64_t min_code, int64_t max_code, int64_t keep, int64_t of) {
  TORCH_CHECK(weight.dim() == 2 && errors.sizes() == weight.sizes() && weight.stride(1) == 1 && errors.stride(1) == 1,
              "column_sweep_: weight and errors are matrices of one shape with unit column stride");
  TORCH_CHECK(of == 0 || (of <= 64 && keep >= 1 && keep < of), "column_sweep_: keep ", keep, " of ", of);
  if (weight.numel() == 0) return;
  const at::Tensor factor = with_contiguous_rows(factor_in);
  const bool coded = scale_in && scale_in->defined();
  const at::Tensor scale = coded ? with_contiguous_rows(*scale_in) : at::Tensor();
  const at::Tensor zero = coded && zero_in && zero_in->defined() ? with_contiguous_rows(*zero_in) : at::Tensor();
  const at::Tensor group = coded ? group_in->contiguous() : at::Tensor();
  const kernels::DeviceSweep sweep{factor.const_data_ptr<float>(),
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

const std::vector<std::string>& accelerated_ops() {
  static const std::vector<std::string> names = {"choose_params", "encode", "cast_e4m3", "decode", "pack_codes", "column_sweep_"};
  return names;
}

void synchronize() { check(wait_for_device()); }

TORCH_LIBRARY_IMPL(slim, CUDA, m) {
  m.impl("choose_params", choose_params);
  m.impl("encode", encode);
  m.impl("cast_e4m3", cast_e4m3);
  m.impl("decode", decode);
  m.impl("pack_codes", pack_codes);
  m.impl("column_sweep_", column_sweep_);
}

}  // namespace slim::cuda
