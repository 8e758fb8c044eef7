#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "slim/ops.hpp"
#include "slim/scheme.hpp"
#include "slim/statistic.hpp"

namespace slim::awq {

/// The operators' view of a scheme in which rows do not depend on each other: per channel, or groups that divide `in`.
ops::Rounding rounding_by_rows(const QuantArgs&, int64_t in, at::ScalarType scale_dtype);

/// The mean over calibration tokens of ‖ΔW x‖²: exact, from E[x xᵀ] (cost rows * in²) or from the activations themselves (cost
/// rows * in * tokens), whichever is cheaper.
class OutputError {
 public:
  /// nullopt if neither statistic saw a token. The statistics must outlive the result; no copy is made.
  static std::optional<OutputError> from(const Gram*, const ActivationRows*);

  /// Summed over the rows of `delta` [rows, in] fp32.
  double operator()(const at::Tensor& delta) const;
  /// That of Q(W s) / s for every row s of scales [candidates, in], in fp64 on the CPU. Units are parts of rows.
  at::Tensor of_scales(const at::Tensor& weight, const at::Tensor& scales, const ops::Rounding&,
                       const ops::RangeSearch&) const;
  /// E[x²] [in].
  at::Tensor mean_square() const;
  /// The error that channels [begin, begin + size) cause on their own; operands then have `size` columns.
  OutputError of_channels(int64_t begin, int64_t size) const;
  /// The blocks of E[x xᵀ] on its diagonal: [in / size, size, size]. `size` divides in.
  at::Tensor diagonal_blocks(int64_t size) const;
  /// Σ x xᵀ [in, in].
  at::Tensor gram() const;
  double tokens() const { return tokens_; }

 private:
  at::Tensor gram_;  // Σ x xᵀ
  at::Tensor rows_;  // [kept, in]
  double tokens_ = 0, divisor_ = 1;
};

}  // namespace slim::awq
