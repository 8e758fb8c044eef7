// The ranges that GPTQ's sweep rounds best with: the reference kernel, on whole-tensor operators, for any device.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/call.h"
#include "quant/arithmetic.h"
#include "slim/ops.hpp"

namespace slim::ops {
namespace {

constexpr double kSweepStep = 0.05;

/// Extremes [rows, 1] of one group and the share of each that the codes span.
class SweepSearch {
 public:
  SweepSearch(const at::Tensor& weight, const at::Tensor& factor, const quant::CodeRange& codes,
              at::ScalarType dtype)
      : weight_(weight), factor_(factor), range_(codes), dtype_(dtype) {
    const auto [min, max] = at::aminmax(weight, 1, /*keepdim=*/true);
    min_ = min.clamp_max(0);
    max_ = max.clamp_min(0);
    low_ = at::ones_like(min_);
    high_ = at::ones_like(max_);
    errors_ = at::empty(weight.sizes(), weight.options());
    codes_ = at::empty(weight.sizes(), weight.options().dtype(at::kChar));
    columns_ = at::zeros({weight.size(1)}, weight.options().dtype(at::kInt));
    best_ = cost(low_, high_);
  }

  void shrink_together(double least) {
    // 2^b codes lie unevenly around zero: a symmetric range a little wider than the extremes leaves the largest weight unclipped.
    const double widest = range_.symmetric ? -range_.min / range_.max : 1;
    for (double ratio = std::min(widest, 1.5); ratio > least; ratio -= kSweepStep) {
      const at::Tensor candidate = at::full_like(low_, ratio);
      keep_if_better(candidate, candidate);
    }
  }

  void move_ends() {
    for (const double step : {-4 * kSweepStep, -2 * kSweepStep, -kSweepStep, kSweepStep, 2 * kSweepStep})
      keep_if_better((low_ + step).clamp_(0, 1), high_);
    for (const double step : {-4 * kSweepStep, -2 * kSweepStep, -kSweepStep, kSweepStep, 2 * kSweepStep})
      keep_if_better(low_, (high_ + step).clamp_(0, 1));
  }

  at::Tensor low() const { return min_ * low_; }
  at::Tensor high() const { return max_ * high_; }

 private:
  at::Tensor cost(const at::Tensor& low, const at::Tensor& high) {
    const quant::FloatParams params = quant::float_params(min_ * low, max_ * high, range_, dtype_);
    column_sweep_(weight_.clone(at::MemoryFormat::Contiguous), errors_, codes_, factor_, params.scale,
                  optional(params.zero), columns_, static_cast<int64_t>(range_.min),
                  static_cast<int64_t>(range_.max), 0, 0);
    return errors_.square().sum(1, /*keepdim=*/true);
  }

  void keep_if_better(const at::Tensor& low, const at::Tensor& high) {
    const at::Tensor candidate = cost(low, high);
    const at::Tensor better = candidate < best_;
    best_ = at::where(better, candidate, best_);
    low_ = at::where(better, low, low_);
    high_ = at::where(better, high, high_);
  }

  const at::Tensor &weight_, &factor_;
  quant::CodeRange range_;
  at::ScalarType dtype_;
  at::Tensor min_, max_, low_, high_, best_;
  at::Tensor errors_, codes_, columns_;  // written by every candidate
};

using SweepRangesSignature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, int64_t,
                                                                bool, at::ScalarType);

std::tuple<at::Tensor, at::Tensor> sweep_ranges_reference(const at::Tensor& weight, const at::Tensor& factor,
                                                          int64_t bits, bool symmetric,
                                                          at::ScalarType scale_dtype) {
  const quant::CodeRange codes =
      quant::code_range(Rounding{1, weight.size(1), bits, false, symmetric, scale_dtype});
  SweepSearch search(weight, factor, codes, scale_dtype);
  search.shrink_together(bits > 3 ? 0.5 : 0.3);
  if (!symmetric) search.move_ends();
  return {search.low(), search.high()};
}

}  // namespace

GroupRanges sweep_ranges(const at::Tensor& weight, const at::Tensor& factor, const Rounding& rounding) {
  TORCH_CHECK(!rounding.e4m3, "sweep_ranges: codes are integers");
  static const Operator<SweepRangesSignature> op("slim::sweep_ranges");
  auto [low, high] = op(weight, factor, rounding.bits, rounding.symmetric, rounding.scale_dtype);
  return {low, high};
}

}  // namespace slim::ops

TORCH_LIBRARY_FRAGMENT(slim, m) {
  m.def(
      "sweep_ranges(Tensor weight, Tensor factor, int bits, bool symmetric, ScalarType scale_dtype) -> "
      "(Tensor low, Tensor high)");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("sweep_ranges", slim::ops::sweep_ranges_reference);
}
