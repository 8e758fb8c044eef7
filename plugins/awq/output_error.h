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
  /// The errors of a layer's channels as they become known, from the first channel on.
  class Accumulated {
   public:
    /// What they put on the channels [begin, begin + group) that follow: Σ_h δ_h E[x xᵀ]_h,group, fp32 [rows, group]. Zeros for the first.
    at::Tensor coupling(int64_t begin) const;
    /// Adds the errors [rows, group] of the channels from `begin` on.
    void add(int64_t begin, const at::Tensor& delta);

   private:
    friend class OutputError;
    at::Tensor inputs_of(int64_t begin) const;  // fp32 [kept, group]
    int64_t group_ = 0;
    double divisor_ = 1;
    at::Tensor gram_, deltas_;     // deltas_ [rows, in]
    at::Tensor inputs_, outputs_;  // or the outputs' errors, fp32 [rows, kept], for inputs_ [kept, in]
  };
  /// For weights of weight's shape and device, in groups of the size that was given to it.
  Accumulated accumulated_for(const at::Tensor& weight, int64_t group) const;
  double tokens() const { return tokens_; }

 private:
  at::Tensor gram_;  // Σ x xᵀ
  at::Tensor rows_;  // [kept, in]
  double tokens_ = 0, divisor_ = 1;
};

}  // namespace slim::awq
