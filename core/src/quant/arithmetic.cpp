#include "quant/arithmetic.h"

#include <ATen/ATen.h>

namespace slim::quant {
namespace {

constexpr double kMaxE4M3 = 448.0;

at::Tensor rounded_to(const at::Tensor& x, at::ScalarType dtype) {
  return dtype == at::kFloat ? x : x.to(dtype).to(at::kFloat);
}

CodeRange range_of_bits(int bits, bool e4m3, bool symmetric) {
  if (e4m3) return {-kMaxE4M3, kMaxE4M3, true, true};
  const double half = static_cast<double>(int64_t{1} << (bits - 1));
  return {-half, half - 1, false, symmetric};
}

}  // namespace

CodeRange code_range(const QuantArgs& args) {
  return range_of_bits(args.bits, args.type == NumberType::kFloat, args.symmetric);
}
CodeRange code_range(const ops::Rounding& rounding) {
  return range_of_bits(static_cast<int>(rounding.bits), rounding.e4m3, rounding.symmetric);
}

FloatParams float_params(const at::Tensor& low, const at::Tensor& high, const CodeRange& codes,
                         at::ScalarType dtype) {
  const auto rounded = [&](const at::Tensor& x) { return rounded_to(x, dtype); };
  const at::Tensor min = rounded(low.clamp_max(0)), max = rounded(high.clamp_min(0));
  FloatParams params;
  if (codes.symmetric) {
    params.scale = rounded(at::maximum(min.neg(), max) / ((codes.max - codes.min) / 2));
  } else {
    params.scale = rounded(rounded(max - min) / (codes.max - codes.min));
  }
  params.scale = at::where(params.scale == 0, at::ones_like(params.scale), params.scale);
  if (!codes.symmetric) {
    const at::Tensor zero = rounded(codes.min - rounded(min / params.scale));
    params.zero = zero.clamp_(codes.min, codes.max).round_();
  }
  return params;
}

at::Tensor codes_of(const at::Tensor& w, const FloatParams& params, const CodeRange& codes,
                    at::ScalarType arithmetic) {
  at::Tensor scaled = rounded_to(w / params.scale, arithmetic);
  if (params.zero.defined()) scaled = rounded_to(scaled.add_(params.zero), arithmetic);
  scaled.clamp_(codes.min, codes.max);
  return codes.e4m3 ? scaled.to(at::kFloat8_e4m3fn).to(at::kFloat) : scaled.round_();
}

at::Tensor values_of(const at::Tensor& codes, const FloatParams& params) {
  return params.zero.defined() ? (codes - params.zero).mul_(params.scale) : codes * params.scale;
}

}  // namespace slim::quant
