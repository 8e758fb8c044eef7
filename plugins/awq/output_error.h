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
  /// The blocks of E[x xᵀ] on its diagonal: [in / size, size, size]. `size` divides in.
  at::Tensor diagonal_blocks(int64_t size) const;
  double tokens() const { return tokens_; }

 private:
  friend class GroupErrors;
  at::Tensor gram_;  // Σ x xᵀ
  at::Tensor rows_;  // [kept, in]
  double tokens_ = 0, divisor_ = 1;
};

/// The errors of all groups of a layer's channels, replaced group by group, and what they put on each other.
class GroupErrors {
 public:
  /// delta fp32 [rows, in] is taken over; groups of `size` channels.
  GroupErrors(const OutputError&, at::Tensor delta, int64_t size);
  /// What all other groups put on this one: Σ_h δ_h E[x xᵀ]_h,group, fp32 [rows, size]. block: E[x xᵀ] of the group itself.
  at::Tensor coupling(int64_t group, const at::Tensor& block) const;
  /// delta fp32 [rows, size]
  void replace(int64_t group, const at::Tensor& delta);

 private:
  at::Tensor of(int64_t group) const { return delta_.narrow(1, group * size_, size_); }
  at::Tensor inputs_of(int64_t group) const;  // fp32 [kept, size]

  at::Tensor delta_;
  int64_t size_;
  double divisor_;
  at::Tensor gram_;              // Σ x xᵀ
  at::Tensor inputs_, outputs_;  // or the errors of the outputs, fp32 [rows, kept], for inputs [kept, in]
};

}  // namespace slim::awq
