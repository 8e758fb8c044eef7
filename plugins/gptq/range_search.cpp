#include "range_search.h"

#include <ATen/ATen.h>

#include "slim/ops.hpp"

namespace slim::gptq {
namespace {

constexpr double kStep = 0.05;

/// Extremes [out, 1] of one group and the share of each that the codes span.
class Search {
 public:
  Search(const quant::SweepGroup& group, const QuantArgs& args, at::ScalarType dtype)
      : group_(group), args_(args), dtype_(dtype) {
    const auto [min, max] = at::aminmax(group.weight, 1, /*keepdim=*/true);
    min_ = min.clamp_max(0);
    max_ = max.clamp_min(0);
    low_ = at::ones_like(min_);
    high_ = at::ones_like(max_);
    errors_ = at::empty(group.weight.sizes(), group.weight.options());
    codes_ = at::empty(group.weight.sizes(), group.weight.options().dtype(at::kChar));
    columns_ = at::zeros({group.weight.size(1)}, group.weight.options().dtype(at::kInt));
    best_ = cost(low_, high_);
  }

  void shrink_together() {
    // 2^b codes lie unevenly around zero: a symmetric range a little wider than the extremes leaves the largest weight unclipped.
    const double widest =
        args_.symmetric ? static_cast<double>(-args_.min_code()) / static_cast<double>(args_.max_code()) : 1;
    const double least = args_.bits > 3 ? 0.5 : 0.3;
    for (double ratio = std::min(widest, 1.5); ratio > least; ratio -= kStep) {
      const at::Tensor candidate = at::full_like(low_, ratio);
      keep_if_better(candidate, candidate);
    }
  }

  void move_ends() {
    for (const double step : {-4 * kStep, -2 * kStep, -kStep, kStep, 2 * kStep})
      keep_if_better((low_ + step).clamp_(0, 1), high_);
    for (const double step : {-4 * kStep, -2 * kStep, -kStep, kStep, 2 * kStep})
      keep_if_better(low_, (high_ + step).clamp_(0, 1));
  }

  quant::Params best() const { return quant::params_from_range(min_ * low_, max_ * high_, args_, dtype_); }

 private:
  at::Tensor cost(const at::Tensor& low, const at::Tensor& high) {
    const quant::Params params = quant::params_from_range(min_ * low, max_ * high, args_, dtype_);
    const auto zero = params.zero.defined() ? std::optional(params.zero.to(at::kFloat)) : std::nullopt;
    ops::column_sweep_(group_.weight.clone(at::MemoryFormat::Contiguous), errors_, codes_, group_.factor,
                       params.scale.to(at::kFloat), zero, columns_, args_.min_code(), args_.max_code(), 0, 0);
    return errors_.square().sum(1, /*keepdim=*/true);
  }

  void keep_if_better(const at::Tensor& low, const at::Tensor& high) {
    const at::Tensor candidate = cost(low, high);
    const at::Tensor better = candidate < best_;
    best_ = at::where(better, candidate, best_);
    low_ = at::where(better, low, low_);
    high_ = at::where(better, high, high_);
  }

  const quant::SweepGroup& group_;
  const QuantArgs& args_;
  at::ScalarType dtype_;
  at::Tensor min_, max_, low_, high_, best_;
  at::Tensor errors_, codes_, columns_;  // written by every candidate
};

}  // namespace

quant::Params search_range(const quant::SweepGroup& group, const QuantArgs& args,
                           at::ScalarType scale_dtype) {
  Search search(group, args, scale_dtype);
  search.shrink_together();
  if (!args.symmetric) search.move_ends();
  return search.best();
}

}  // namespace slim::gptq
