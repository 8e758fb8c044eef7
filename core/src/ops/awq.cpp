// What AWQ evaluates for many candidates: reference kernels on whole-tensor operators, for any device.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/call.h"
#include "quant/arithmetic.h"
#include "slim/ops.hpp"

namespace slim::ops {
namespace {

constexpr int64_t kRowsPerSlice = 256;
constexpr double kSmallestRatio = 0.5, kStep = 0.025;

/// Slice of rows whose ranges [rows, groups] are searched together, group by group.
class SliceSearch {
 public:
  SliceSearch(const at::Tensor& weight, const at::Tensor& blocks, const at::Tensor& coupling,
              const quant::CodeRange& codes, at::ScalarType dtype)
      : weight_(weight.view({weight.size(0), blocks.size(0), blocks.size(1)})),
        blocks_(blocks),
        coupling_(coupling.defined() ? coupling.view(weight_.sizes()) : coupling),
        codes_(codes),
        dtype_(dtype) {
    const auto [min, max] = at::aminmax(weight_, -1);
    min_ = min.clamp_max(0);
    max_ = max.clamp_min(0);
    low_ = at::ones_like(min_);
    high_ = at::ones_like(max_);
    best_ = error(low_, high_);
  }

  void shrink_together() {
    // 2^b codes lie unevenly around zero: a symmetric range a little wider than the extremes keeps the largest weight unclipped.
    for (double ratio = codes_.symmetric ? -codes_.min / codes_.max : 1; ratio >= kSmallestRatio;
         ratio -= kStep) {
      const at::Tensor candidate = at::full_like(low_, ratio);
      keep_if_better(candidate, candidate);
    }
    if (!coupling_.defined()) return;
    const at::Tensor best = low_;
    for (const double step : {-kStep / 2, kStep / 2}) keep_if_better(best + step, best + step);
  }

  void move_ends() {
    const at::Tensor low = low_, high = high_;
    for (const double step : moves()) keep_if_better((low + step).clamp_max(1), high);
    const at::Tensor moved = low_;
    for (const double step : moves()) keep_if_better(moved, (high + step).clamp_max(1));
  }

  at::Tensor low() const { return min_ * low_; }
  at::Tensor high() const { return max_ * high_; }

 private:
  std::vector<double> moves() const {
    if (!coupling_.defined()) return {-4 * kStep, -2 * kStep, 2 * kStep, 4 * kStep};
    return {-4 * kStep, -2 * kStep, -kStep, -kStep / 2, kStep / 2, kStep, 2 * kStep, 4 * kStep};
  }

  /// δ E[x xᵀ]_gg δᵀ + 2 coupling δᵀ per group: [rows, groups].
  at::Tensor error(const at::Tensor& low, const at::Tensor& high) const {
    quant::FloatParams params = quant::float_params(min_ * low, max_ * high, codes_, dtype_);
    params.scale = params.scale.unsqueeze(-1);
    if (params.zero.defined()) params.zero = params.zero.unsqueeze(-1);
    const at::Tensor delta = quant::values_of(quant::codes_of(weight_, params, codes_, at::kFloat), params)
                                 .sub_(weight_)
                                 .transpose(0, 1);  // [groups, rows, g]
    at::Tensor product = at::bmm(delta, blocks_);
    if (coupling_.defined()) product.add_(coupling_.transpose(0, 1), 2);
    return product.mul_(delta).sum(-1).t();
  }

  void keep_if_better(const at::Tensor& low, const at::Tensor& high) {
    const at::Tensor candidate = error(low, high);
    const at::Tensor better = candidate < best_;
    best_ = at::where(better, candidate, best_);
    low_ = at::where(better, low, low_);
    high_ = at::where(better, high, high_);
  }

  at::Tensor weight_, blocks_, coupling_;
  quant::CodeRange codes_;
  at::ScalarType dtype_;
  at::Tensor min_, max_, low_, high_, best_;
};

std::tuple<at::Tensor, at::Tensor> gram_ranges_reference(const at::Tensor& weight, const at::Tensor& blocks,
                                                         const OptionalTensor& coupling, int64_t bits,
                                                         bool e4m3, bool symmetric,
                                                         at::ScalarType scale_dtype) {
  const quant::CodeRange codes =
      quant::code_range(Rounding{1, blocks.size(-1), bits, e4m3, symmetric, scale_dtype});
  at::Tensor low = at::empty({weight.size(0), blocks.size(0)}, weight.options()), high = at::empty_like(low);
  for (int64_t begin = 0; begin < weight.size(0); begin += kRowsPerSlice) {
    const int64_t rows = std::min(kRowsPerSlice, weight.size(0) - begin);
    const auto slice = [&](const at::Tensor& x) { return x.narrow(0, begin, rows).contiguous(); };
    SliceSearch search(slice(weight), blocks, coupling ? slice(*coupling) : at::Tensor(), codes, scale_dtype);
    search.shrink_together();
    if (!codes.symmetric) search.move_ends();
    low.narrow(0, begin, rows).copy_(search.low());
    high.narrow(0, begin, rows).copy_(search.high());
  }
  return {low, high};
}

at::Tensor scale_losses_reference(const at::Tensor& weight, const at::Tensor& scales,
                                  const OptionalTensor& gram, const OptionalTensor& inputs,
                                  int64_t unit_columns, int64_t bits, bool e4m3, bool symmetric,
                                  at::ScalarType scale_dtype, const OptionalTensor& importance,
                                  double max_shrink, double norm, int64_t steps) {
  const Rounding rounding{1, unit_columns, bits, e4m3, symmetric, scale_dtype};
  RangeSearch search{{}, max_shrink, norm, steps, 0};
  const bool by_group = gram && gram->dim() == 3;
  at::Tensor losses = by_group ? at::empty({scales.size(0), gram->size(0)}, at::kDouble)
                               : at::empty({scales.size(0)}, at::kDouble);
  for (int64_t k = 0; k < scales.size(0); ++k) {
    const at::Tensor s = scales[k], scaled = weight * s;
    if (importance) search.importance = *importance / s.square();
    const ScaleZero params = choose_params(scaled, rounding, search);
    const at::Tensor delta =
        decode(encode(scaled, params, rounding, at::kFloat), params, rounding).div_(s).sub_(weight);
    if (by_group) {
      const at::Tensor groups = delta.view({delta.size(0), gram->size(0), -1}).transpose(0, 1);
      losses[k].copy_(at::bmm(groups, *gram).mul_(groups).sum({1, 2}, false, at::kDouble));
      continue;
    }
    const at::Tensor terms =
        gram ? at::matmul(delta, *gram).mul_(delta) : at::matmul(delta, inputs->to(at::kFloat).t()).square_();
    losses[k].fill_(terms.sum(at::kDouble).item<double>());
  }
  return losses;
}

}  // namespace

GroupRanges gram_ranges(const at::Tensor& weight, const at::Tensor& blocks, const at::Tensor& coupling,
                        const Rounding& rounding) {
  using Signature = std::tuple<at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const OptionalTensor&, int64_t, bool, bool, at::ScalarType);
  static const Operator<Signature> op("slim::gram_ranges");
  auto [low, high] = op(weight, blocks, optional(coupling), rounding.bits, rounding.e4m3, rounding.symmetric,
                        rounding.scale_dtype);
  return {low, high};
}

at::Tensor scale_losses(const at::Tensor& weight, const at::Tensor& scales, const at::Tensor& gram,
                        const at::Tensor& inputs, const Rounding& rounding, const RangeSearch& search) {
  using Signature =
      at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
                 int64_t, bool, bool, at::ScalarType, const OptionalTensor&, double, double, int64_t);
  static const Operator<Signature> op("slim::scale_losses");
  return op(weight, scales, optional(gram), optional(inputs), rounding.unit_columns, rounding.bits,
            rounding.e4m3, rounding.symmetric, rounding.scale_dtype, optional(search.importance),
            search.max_shrink, search.norm, search.steps);
}

}  // namespace slim::ops

TORCH_LIBRARY_FRAGMENT(slim, m) {
  m.def(
      "gram_ranges(Tensor weight, Tensor blocks, Tensor? coupling, int bits, bool e4m3, bool symmetric, "
      "ScalarType scale_dtype) -> "
      "(Tensor low, Tensor high)");
  m.def(
      "scale_losses(Tensor weight, Tensor scales, Tensor? gram, Tensor? inputs, int unit_columns, int bits, "
      "bool e4m3, "
      "bool symmetric, ScalarType scale_dtype, Tensor? importance, float max_shrink, float norm, int steps) "
      "-> Tensor");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("gram_ranges", slim::ops::gram_ranges_reference);
  m.impl("scale_losses", slim::ops::scale_losses_reference);
}
