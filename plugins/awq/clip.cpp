#include "clip.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace slim::awq {
namespace {

/// A slice and a group are worked on in the processor's cache.
constexpr int64_t kRowsPerSlice = 512;
/// Ranges are tried as shares of the extremes, down to a half.
constexpr double kSmallestShare = 0.5, kStep = 0.0125;

/// The range of one group of channels, for some rows at once.
class GroupSearch {
 public:
  /// weight [rows, g]; block [g, g] of Σ x xᵀ; others [rows, g]: what the errors of all other groups put on these channels.
  GroupSearch(const at::Tensor& weight, const at::Tensor& block, const at::Tensor& others,
              const QuantArgs& args, at::ScalarType scale_dtype)
      : weight_(weight.contiguous()), block_(block), others_(others), args_(args), scale_dtype_(scale_dtype) {
    args_.granularity = Granularity::kChannel;
    const auto [min, max] = at::aminmax(weight_, 1, /*keepdim=*/true);
    min_ = min.clamp_max(0);
    max_ = max.clamp_min(0);
  }

  /// The range to be improved on.
  void start(const quant::Params& params, const at::Tensor& delta) {
    params_ = params;
    delta_ = delta;
    best_ = cost(delta);
    if (args_.symmetric) return;
    low_ = at::div(params.scale.to(at::kFloat) * (args_.min_code() - params.zero.to(at::kFloat)),
                   min_.clamp_max(-1e-30))
               .clamp_(0, 1);
    high_ = at::div(params.scale.to(at::kFloat) * (args_.max_code() - params.zero.to(at::kFloat)),
                    max_.clamp_min(1e-30))
                .clamp_(0, 1);
  }

  void shrink_together() {
    // 2^b codes lie unevenly around zero: a symmetric range a little wider than the extremes leaves the largest weight unclipped.
    const double widest =
        args_.symmetric ? static_cast<double>(-args_.min_code()) / static_cast<double>(args_.max_code()) : 1;
    for (double share = std::min(widest, 1.5); share >= kSmallestShare; share -= kStep) {
      const at::Tensor both = at::full_like(min_, share);
      keep_if_better(both, both);
    }
  }

  void move_ends() {
    for (const int step : {-8, -4, -2, -1, 1, 2, 4, 8})
      keep_if_better((low_ + step * kStep).clamp_(0, 1), high_);
    for (const int step : {-8, -4, -2, -1, 1, 2, 4, 8})
      keep_if_better(low_, (high_ + step * kStep).clamp_(0, 1));
  }

  const quant::Params& params() const { return params_; }
  const at::Tensor& delta() const { return delta_; }

 private:
  /// What the group adds to the squared error of the output.
  at::Tensor cost(const at::Tensor& delta) const {
    return at::addmm(others_, delta, block_, /*beta=*/2).mul_(delta).sum(1, /*keepdim=*/true);
  }

  void keep_if_better(const at::Tensor& low, const at::Tensor& high) {
    const quant::Params params = quant::params_from_range(min_ * low, max_ * high, args_, scale_dtype_);
    const at::Tensor delta = quant::fake_quantize(weight_, params, args_).sub_(weight_);
    const at::Tensor candidate = cost(delta), better = candidate < best_;
    const auto choose = [&](at::Tensor& kept, const at::Tensor& other) {
      kept = at::where(better, other, kept);
    };
    choose(best_, candidate);
    choose(delta_, delta);
    choose(params_.scale, params.scale);
    if (args_.symmetric) return;
    choose(params_.zero, params.zero);
    choose(low_, low);
    choose(high_, high);
  }

  at::Tensor weight_, block_, others_, min_, max_;
  QuantArgs args_;
  at::ScalarType scale_dtype_;
  quant::Params params_;
  at::Tensor delta_, best_, low_, high_;
};

/// Goes once through the groups of some rows; `params` [rows, groups] are views that it writes.
void improve_rows(const at::Tensor& weight, const at::Tensor& gram, const QuantArgs& args,
                  at::ScalarType scale_dtype, const quant::Params& params) {
  const int64_t size = args.group_size;
  at::Tensor delta = quant::fake_quantize(weight, params, args).sub_(weight);
  for (int64_t group = 0; group * size < weight.size(1); ++group) {
    const at::Tensor mine = delta.narrow(1, group * size, size);
    const at::Tensor block = gram.narrow(0, group * size, size).narrow(1, group * size, size).contiguous();
    const at::Tensor others =
        at::matmul(delta, gram.narrow(1, group * size, size)).addmm_(mine, block, /*beta=*/1, /*alpha=*/-1);
    const at::Tensor scale = params.scale.narrow(1, group, 1);
    const at::Tensor zero = params.zero.defined() ? params.zero.narrow(1, group, 1) : at::Tensor();
    GroupSearch search(weight.narrow(1, group * size, size), block, others, args, scale_dtype);
    search.start({scale, zero}, mine);
    search.shrink_together();
    if (!args.symmetric) search.move_ends();
    mine.copy_(search.delta());
    scale.copy_(search.params().scale);
    if (zero.defined()) zero.copy_(search.params().zero);
  }
}

}  // namespace

quant::Params search_group_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                  const OutputError& error) {
  const at::Tensor blocks = error.diagonal_blocks(args.group_size).to(weight.device()).contiguous();
  const ops::GroupRanges ranges =
      ops::gram_ranges(weight, blocks, rounding_by_rows(args, weight.size(1), scale_dtype));
  return quant::params_from_range(ranges.low, ranges.high, args, scale_dtype);
}

quant::Params search_joint_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                  const OutputError& error) {
  quant::Params params = search_group_ranges(weight, args, scale_dtype, error);
  if (weight.size(1) == args.group_size) return params;
  const at::Tensor gram = error.gram().to(weight.device());
  for (int64_t begin = 0; begin < weight.size(0); begin += kRowsPerSlice) {
    const int64_t rows = std::min(kRowsPerSlice, weight.size(0) - begin);
    const at::Tensor zero = params.zero.defined() ? params.zero.narrow(0, begin, rows) : at::Tensor();
    improve_rows(weight.narrow(0, begin, rows), gram, args, scale_dtype,
                 {params.scale.narrow(0, begin, rows), zero});
  }
  return params;
}

}  // namespace slim::awq
