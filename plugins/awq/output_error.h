#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "slim/statistic.hpp"

namespace slim::awq {

/// The mean over calibration tokens of ‖ΔW x‖²: exact, from E[x xᵀ] (cost rows * in²) or from the activations themselves (cost
/// rows * in * tokens), whichever is cheaper.
class OutputError {
 public:
  /// nullopt if neither statistic saw a token. The statistics must outlive the result; no copy is made.
  static std::optional<OutputError> from(const Gram*, const ActivationRows*);

  /// Summed over the rows of `delta` [rows, in] fp32.
  double operator()(const at::Tensor& delta) const;
  /// E[x²] [in].
  at::Tensor mean_square() const;
  /// The blocks of E[x xᵀ] on its diagonal: [in / size, size, size]. `size` divides in.
  at::Tensor diagonal_blocks(int64_t size) const;
  double tokens() const { return tokens_; }

 private:
  at::Tensor gram_;  // Σ x xᵀ
  at::Tensor rows_;  // [kept, in]
  double tokens_ = 0, divisor_ = 1;
};

}  // namespace slim::awq
