#pragma once
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/arithmetic.hpp"
#include "slim/ops.hpp"

/// Operators' arguments as kernels take them. What may be wrong with arguments for any backend, the functions of slim/ops.hpp check.
namespace slim::kernels {

using OptionalTensor = std::optional<at::Tensor>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Float float_type(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "expected fp32, bf16 or fp16, found ", type);
  return type == at::kFloat ? Float::kFloat : type == at::kBFloat16 ? Float::kBFloat16 : Float::kHalf;
}

inline CodeRange code_range(int64_t bits, bool e4m3, bool symmetric) {
  if (e4m3) return {-448, 448, true, true};
  const auto half = static_cast<float>(int64_t{1} << (bits - 1));
  return {-half, half - 1, false, symmetric};
}

/// Of codes that are there: of 8 bits or E4M3.
inline CodeRange range_of_codes(const at::Tensor& codes, const OptionalTensor& zero) {
  TORCH_CHECK(codes.scalar_type() == at::kChar || codes.scalar_type() == at::kFloat8_e4m3fn,
              "codes are int8 or float8_e4m3fn");
  return code_range(8, codes.scalar_type() == at::kFloat8_e4m3fn, !zero);
}

/// A matrix whose rows are contiguous.
inline at::Tensor with_contiguous_rows(const at::Tensor& x) {
  return x.dim() == 2 && x.stride(1) == 1 ? x : x.contiguous();
}

inline const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

/// Scales and zero points [steps, units] of a weight, contiguous; zero may be undefined.
struct UnitParams {
  at::Tensor scale, zero;
};
inline UnitParams unit_params(const at::Tensor& scale, const OptionalTensor& zero, int64_t steps,
                              int64_t units) {
  TORCH_CHECK(scale.scalar_type() == at::kFloat && scale.numel() == steps * units, "expected fp32 scales [",
              steps, ", ", units, "], found ", scale.sizes());
  TORCH_CHECK(!zero || (zero->scalar_type() == at::kFloat && zero->numel() == scale.numel()),
              "zero differs from scale in shape or type");
  const std::vector<int64_t> shape{steps, units};
  return {scale.reshape(shape).contiguous(), zero ? zero->reshape(shape).contiguous() : at::Tensor()};
}

/// The operators `encode` and `cast_e4m3`, by a backend's one function that rounds to any range of codes.
template <auto EncodeWith>
at::Tensor encode(const at::Tensor& weight, const at::Tensor& scale, const OptionalTensor& zero,
                  int64_t unit_rows, int64_t unit_columns, int64_t bits, at::ScalarType arithmetic) {
  return EncodeWith(weight, scale, zero, unit_rows, unit_columns, code_range(bits, false, !zero), arithmetic);
}
template <auto EncodeWith>
at::Tensor cast_e4m3(const at::Tensor& weight, const at::Tensor& scale, int64_t unit_rows,
                     int64_t unit_columns, at::ScalarType arithmetic) {
  return EncodeWith(weight, scale, std::nullopt, unit_rows, unit_columns, code_range(8, true, true),
                    arithmetic);
}

/// The core's reference kernel of an operator, for what the kernel here does not serve.
template <class Signature, class... Arguments>
auto reference(const char* name, Arguments&&... arguments) {
  // No backend registers kernels for Meta, so that its entry is the reference, which works for any device.
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>().redispatch(
      c10::DispatchKeySet(c10::DispatchKey::Meta), std::forward<Arguments>(arguments)...);
}

/// Operators with a kernel for this key, without `slim::`.
inline std::vector<std::string> registered_operators(c10::DispatchKey key) {
  std::vector<std::string> names = ops::operator_names();
  std::erase_if(names, [&](const std::string& name) {
    return !c10::Dispatcher::singleton()
                .findSchemaOrThrow(("slim::" + name).c_str(), "")
                .hasKernelForDispatchKey(key);
  });
  return names;
}

}  // namespace slim::kernels
