#pragma once
#include <ATen/core/Tensor.h>

#include "slim/algorithm.hpp"
#include "slim/scheme.hpp"
#include "slim/status.hpp"

/// The arithmetic of quantization that all algorithms share. Weights are fp32 [out, in], contiguous or not; results are on
/// the weight's device. Pure functions, safe from any thread.
namespace slim::quant {

/// Scale and zero point, shaped as slim::Quantized says; zero undefined when symmetric.
struct Params {
  at::Tensor scale;  ///< positive
  at::Tensor zero;   ///< int8
};

/// How the range that the codes span is found.
struct RangeOptions {
  /// How hard the range is looked for.
  enum class Method : uint8_t {
    kMinMax,  ///< smallest range that holds every value: llm-compressor's memoryless_minmax
    kMse      ///< the range is shrunk step by step; the step of least Σ importance |ŵ - w|^norm wins
  };
  Method method = Method::kMinMax;  ///< of the search
  at::Tensor importance;  ///< [in] fp32, E[x²]; undefined: 1
  double max_shrink = 0.6;  ///< kMse: the smallest range that is tried is 1 - max_shrink of the largest
  double norm = 2.0;        ///< kMse: the exponent of the error
  int steps = 40;           ///< kMse: ranges that are tried
  /// > 0: stands for max|w| in per-tensor scales (layers that an engine fuses share a scale).
  double fused_abs_max = 0;
};

/// Symmetric int b: scale = max|w| / ((2^b - 1) / 2). Asymmetric: scale = (max(max,0) - min(min,0)) / (2^b - 1), zero =
/// round(clamp(min_code - min / scale)). E4M3: scale = max|w| / 448. Extremes, range, scale, quotient and difference are each
/// rounded to `scale_dtype` in that order, so that for weights of that dtype the results are bit-equal to compressed-tensors
/// 0.19. A scale that would be zero becomes 1, and the codes of its weights 0 (there: the dtype's epsilon).
/// kNumeric if the weight holds NaN or Inf, or a scale overflows.
SLIM_API Result<Params> choose_params(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype,
                                      const RangeOptions& = {});
/// The last step of choose_params() for ranges that the caller found: low and high [.., ..] fp32, of the shape that the scale gets.
SLIM_API Params params_from_range(const at::Tensor& low, const at::Tensor& high, const QuantArgs&, at::ScalarType scale_dtype);
/// Codes: clamp(round(w / scale + zero)), ties to even; int8, or float8_e4m3fn (saturating). The quotient and the sum are rounded
/// to `arithmetic` first: fp32 is what compressed-tensors 0.19 does on a GPU; the model's dtype is what it does on a CPU, where
/// many quotients become ties.
SLIM_API at::Tensor encode(const at::Tensor& weight, const Params&, const QuantArgs&,
                           at::ScalarType arithmetic = at::ScalarType::Float);
/// fp32 [out, in] = (codes - zero) * scale.
SLIM_API at::Tensor decode(const at::Tensor& codes, const Params&, const QuantArgs&);
/// The same of a whole result.
SLIM_API at::Tensor decode(const Quantized&);
/// True if group_index is there and not that of consecutive channels, i / group_size.
SLIM_API bool has_scattered_groups(const Quantized&);
/// decode(encode(w)), without making the codes.
SLIM_API at::Tensor fake_quantize(const at::Tensor& weight, const Params&, const QuantArgs&);
/// The same with params chosen by `options`.
SLIM_API Result<at::Tensor> fake_quantize(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype,
                                          const RangeOptions& = {});
/// What an engine does to an activation x [..., in] of a layer with this scheme: dynamic per token, tensor or group, or static
/// with `scale` and `zero`. Same dtype as x. Dynamic scales are those of vLLM's kernels, in fp32: max|x| / 127 (or 448), and
/// (max - min) / 255 with a zero point.
SLIM_API at::Tensor fake_quantize_activation(const at::Tensor& x, const QuantArgs&, const at::Tensor& scale,
                                             const at::Tensor& zero);
/// Rounds without looking at activations: what a layer gets when no algorithm solves it. Static activation scales come from the
/// ChannelMoments of the layer's input, which the algorithm must have asked for. `arithmetic` as in encode().
SLIM_API Result<Solved> round_to_nearest(LayerContext&, const RangeOptions& = {},
                                         at::ScalarType arithmetic = at::ScalarType::Float);

}  // namespace slim::quant
