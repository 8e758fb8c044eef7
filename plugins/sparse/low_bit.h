#pragma once
#include <ATen/core/Tensor.h>

#include "slim/algorithm.hpp"

namespace slim::sparse {

/// Low-bit sparse quantization for Ascend (W8A8S), as msmodelslim 26.1 does it: most weights of a row take one of 15
/// values, -7..7, and a protected minority uses the rest of int8 with the same scale. The int8 bytes have little
/// entropy, which a lossless compressor turns into size.
struct LowBitOptions {
  enum class Activation : uint8_t { kMeanExtremes = 1, kHistogram = 2, kMixed = 3 };
  double fraction = 0.01;  ///< share of the weights that is protected
  bool use_sigma = false;  ///< protect by deviation instead: |w| > sigma_factor * std(|w|)
  double sigma_factor = 3.0;
  bool open_outlier = true;   ///< false: nothing is protected
  bool co_sparse = false;     ///< the older back end: one threshold for the whole matrix, scales searched
  bool whole_matrix = false;  ///< one scale for all rows ("mm_tensor")
  bool widen = false;         ///< a scale large enough that no protected weight saturates
  Activation activation = Activation::kMeanExtremes;

  /// kInvalidArgument for options that exclude each other.
  static Result<LowBitOptions> from(const Options&);
};

/// Codes and scales of a weight [out, in] fp32, and what had to be done for them.
struct LowBitWeight {
  at::Tensor codes;  ///< int8 [out, in]
  at::Tensor scale;  ///< fp32 [out, 1]; 1 where a row is all zero
  int64_t zero_rows = 0;
  int64_t unprotected_rows = 0;  ///< rows whose threshold left no inlier: nothing is protected in them
  int64_t widened_rows = 0;
  int64_t saturated = 0;     ///< weights beyond 127 scales, stored as ±127 (or -128) of them
  double outlier_share = 0;  ///< protected weights
};

/// The back end "is_lowbit": per row t = sigma_factor * std(|w|) (unbiased, no mean added), or the k-th largest |w|
/// with k = int(in * fraction); outliers are |w| > t; s = max{|w| : no outlier} / 7; q = clamp(round(w / s), -128,
/// 127). With `co_sparse`: one t for the matrix, the int(out * in * fraction)-th largest |w|; the s within a fifth of max / 7 whose
/// squared error is least; inliers in -7..7. `whole_matrix`: the largest of all s, or one search for all rows. `floor` fp32
/// [out, 1]: smallest scales allowed; undefined: none. Scales are numbers of `scale_dtype`. kNumeric for NaN and Inf.
Result<LowBitWeight> low_bit_weight(const at::Tensor& weight, const LowBitOptions&,
                                    const at::Tensor& floor = {},
                                    at::ScalarType scale_dtype = at::ScalarType::Float);

void observe_low_bit(const LowBitOptions&, const Layer&, int64_t features, Observations&);
Result<Solved> solve_low_bit(const LowBitOptions&, LayerContext&);

}  // namespace slim::sparse
