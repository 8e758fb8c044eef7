#pragma once
#include <ATen/core/Tensor.h>

#include "slim/ops.hpp"
#include "slim/scheme.hpp"

/// The reference arithmetic of quantization as ATen calls. Tensors broadcast.
namespace slim::quant {

/// How codes look.
struct CodeRange {
  double min = 0, max = 0;
  bool e4m3 = false, symmetric = true;
};
CodeRange code_range(const QuantArgs&);
CodeRange code_range(const ops::Rounding&);

/// Scales and zero points in fp32 (zero undefined when symmetric); every scale is a number of the dtype that it is stored in.
using FloatParams = ops::ScaleZero;

/// The order of operations is that of compressed-tensors 0.19 (calculate_qparams), which computes in the model's dtype: each
/// intermediate result is rounded to it. There the extremes already are numbers of that dtype.
FloatParams float_params(const at::Tensor& low, const at::Tensor& high, const CodeRange&,
                         at::ScalarType dtype);
/// Codes in fp32. Rounding happens after the zero point is added, as in compressed-tensors' kernels (ties differ otherwise).
at::Tensor codes_of(const at::Tensor& w, const FloatParams&, const CodeRange&, at::ScalarType arithmetic);
at::Tensor values_of(const at::Tensor& codes, const FloatParams&);

}  // namespace slim::quant
