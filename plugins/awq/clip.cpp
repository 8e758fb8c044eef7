#include "clip.h"

#include <ATen/ATen.h>

#include <array>

namespace slim::awq {
namespace {

constexpr int64_t kRowsPerSlice = 256;
constexpr double kSmallestRatio = 0.5, kStep = 0.025;

/// Slice of rows whose ranges [rows, groups] are searched together, group by group.
class SliceSearch {
 public:
  SliceSearch(const at::Tensor& weight, const QuantArgs& args, at::ScalarType dtype, const at::Tensor& blocks)
      : weight_(weight), args_(args), dtype_(dtype), blocks_(blocks) {
    const auto [min, max] = at::aminmax(weight.view({weight.size(0), -1, args.group_size}), -1);
    min_ = min.clamp_max(0);
    max_ = max.clamp_min(0);
    low_ = at::ones_like(min_);
    high_ = at::ones_like(max_);
    best_ = error(low_, high_);
  }

  void shrink_together() {
    // 2^b codes lie unevenly around zero: a symmetric range a little wider than the extremes keeps the largest weight unclipped.
    const double largest = args_.symmetric ? static_cast<double>(-args_.min_code()) / static_cast<double>(args_.max_code()) : 1;
    for (double ratio = largest; ratio >= kSmallestRatio; ratio -= kStep) {
      const at::Tensor candidate = at::full_like(low_, ratio);
      keep_if_better(candidate, candidate);
    }
  }

  void move_ends() {
    const at::Tensor low = low_, high = high_;
    for (const double step : {-4 * kStep, -2 * kStep, 2 * kStep, 4 * kStep}) keep_if_better((low + step).clamp_max(1), high);
    const at::Tensor moved = low_;
    for (const double step : {-4 * kStep, -2 * kStep, 2 * kStep, 4 * kStep}) keep_if_better(moved, (high + step).clamp_max(1));
  }

  at::Tensor low() const { return min_ * low_; }
  at::Tensor high() const { return max_ * high_; }

 private:
  /// δ E[x xᵀ]_gg δᵀ per group: [rows, groups].
  at::Tensor error(const at::Tensor& low, const at::Tensor& high) const {
    const quant::Params params = quant::params_from_range(min_ * low, max_ * high, args_, dtype_);
    const at::Tensor delta = quant::fake_quantize(weight_, params, args_)
                                 .sub_(weight_)
                                 .view({weight_.size(0), -1, args_.group_size})
                                 .transpose(0, 1);  // [groups, rows, g]
    return at::bmm(delta, blocks_).mul_(delta).sum(-1).t();
  }

  void keep_if_better(const at::Tensor& low, const at::Tensor& high) {
    const at::Tensor candidate = error(low, high);
    const at::Tensor better = candidate < best_;
    best_ = at::where(better, candidate, best_);
    low_ = at::where(better, low, low_);
    high_ = at::where(better, high, high_);
  }

  const at::Tensor& weight_;
  const QuantArgs& args_;
  at::ScalarType dtype_;
  const at::Tensor& blocks_;
  at::Tensor min_, max_, low_, high_, best_;
};

}  // namespace

quant::Params search_group_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                  const OutputError& error) {
  const at::Tensor blocks = error.diagonal_blocks(args.group_size).to(weight.device()).contiguous();
  const std::vector<int64_t> shape{weight.size(0), weight.size(1) / args.group_size};
  at::Tensor low = at::empty(shape, weight.options()), high = at::empty_like(low);
  for (int64_t begin = 0; begin < weight.size(0); begin += kRowsPerSlice) {
    const int64_t rows = std::min(kRowsPerSlice, weight.size(0) - begin);
    const at::Tensor slice = weight.narrow(0, begin, rows);
    SliceSearch search(slice, args, scale_dtype, blocks);
    search.shrink_together();
    if (!args.symmetric) search.move_ends();
    low.narrow(0, begin, rows).copy_(search.low());
    high.narrow(0, begin, rows).copy_(search.high());
  }
  return quant::params_from_range(low, high, args, scale_dtype);
}

}  // namespace slim::awq
