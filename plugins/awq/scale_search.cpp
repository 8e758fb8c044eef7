#include "scale_search.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace slim::awq {
namespace {

constexpr int64_t kRowsPerSlice = 1024;
constexpr int64_t kCheckedRows = 512;  // of a layer, on which the winner must prove itself

/// Rounding one row of these schemes does not depend on the others, so that rows can be sampled and sliced.
bool rows_are_independent(const QuantArgs& args) {
  return args.granularity == Granularity::kGroup || args.granularity == Granularity::kChannel;
}

at::Tensor evenly_chosen(const at::Tensor& weight, int64_t rows) {
  const int64_t out = weight.size(0);
  if (rows >= out) return weight;
  const at::Tensor index = at::arange(rows, at::kLong).mul_(out).div_(rows, "floor");
  return weight.index_select(0, index.to(weight.device()));
}

/// Σ over rows of |w| / (max |w| of its group + 1e-6): how much of its group's range a channel uses (llm-compressor's w_mean).
at::Tensor sum_of_relative_size(const at::Tensor& weight, const QuantArgs& args) {
  const bool grouped = args.granularity == Granularity::kGroup && weight.size(1) % args.group_size == 0;
  at::Tensor sum = at::zeros({weight.size(1)}, weight.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < weight.size(0); begin += kRowsPerSlice) {
    const int64_t rows = std::min(kRowsPerSlice, weight.size(0) - begin);
    const at::Tensor size =
        weight.narrow(0, begin, rows).abs().view({rows, -1, grouped ? args.group_size : weight.size(1)});
    sum.add_((size / size.amax(-1, true).add_(1e-6)).sum(0, false, at::kDouble).view({-1}));
  }
  return sum;
}

/// Its largest and smallest are as far from 1; where activations are all zero no scale can be told from another, and it is 1.
at::Tensor centered(const at::Tensor& s) {
  const at::Tensor result = s / (s.max() * s.min()).sqrt();
  return at::where(at::isfinite(result), result, at::ones_like(s)).clamp(1e-4, 1e4);
}

}  // namespace

Result<ScaleSearch> ScaleSearch::make(BlockContext& context, const ScaleEdge& edge,
                                      const std::vector<LayerId>& layers, const SearchOptions& options) {
  ScaleSearch search(context, edge, options);
  SLIM_TRY(search.read_activations());
  SLIM_TRY(search.read_layers(layers));
  return search;
}

Status ScaleSearch::read_activations() {
  const auto* moments = context_.statistic<ChannelMoments>(edge_.port);
  if (!moments || moments->tokens <= 0) return {Code::kNotFound, "no calibration token reached its input"};
  const at::Tensor mean = shared_by_heads(moments->mean_abs());
  if (!at::isfinite(mean).all().item<bool>()) {
    return {Code::kNumeric, edge_.name + ": the activations hold NaN or Inf"};
  }
  // A channel that calibration never excited must not get a scale of zero: another input may excite it.
  x_mean_ = mean.clamp_min(std::max(1e-4 * mean.mean().item<double>(), 1e-30));
  return {};
}

Status ScaleSearch::read_layers(const std::vector<LayerId>& layers) {
  const auto count = static_cast<int64_t>(layers.size());
  const int64_t rows =
      std::clamp<int64_t>(4 * options_.rows / count, std::min<int64_t>(32, options_.rows), options_.rows);
  const double edge_tokens = context_.statistic<ChannelMoments>(edge_.port)->tokens;
  at::Tensor relative_size;
  int64_t out = 0;
  for (const LayerId id : layers) {
    const Layer& layer = context_.plan().layers[static_cast<size_t>(id)];
    auto error = OutputError::from(context_.statistic<Gram>(layer.input),
                                   context_.statistic<ActivationRows>(layer.input));
    if (!error) continue;  // an expert that no token reached does not vote
    const at::Tensor weight = context_.weight(id);
    Consumer consumer{id, &*context_.scheme(id)->weight, *error, {}, {}, layer.out, 1.0};
    consumer.share = std::min(1.0, error->tokens() / edge_tokens);
    consumer.sample = rows_are_independent(*consumer.args) ? evenly_chosen(weight, rows) : weight;
    const at::Tensor sum = sum_of_relative_size(weight, *consumer.args);
    relative_size = relative_size.defined() ? relative_size.add_(sum) : sum;
    out += layer.out;
    consumers_.push_back(std::move(consumer));
  }
  if (consumers_.empty()) return {Code::kNotFound, "no calibration token reached its layers"};
  w_mean_ = shared_by_heads((relative_size / static_cast<double>(out)).to(at::kFloat));
  x_mean_ = x_mean_.to(w_mean_.device());
  return {};
}

at::Tensor ScaleSearch::shared_by_heads(const at::Tensor& per_feature) const {
  if (edge_.repeat == 1) return per_feature;
  return per_feature.view({-1, edge_.repeat, edge_.head_dim}).mean(1).reshape({-1});
}

at::Tensor ScaleSearch::per_feature(const at::Tensor& shared) const {
  if (edge_.repeat == 1) return shared;
  return shared.view({-1, 1, edge_.head_dim}).expand({-1, edge_.repeat, edge_.head_dim}).reshape({-1});
}

at::Tensor ScaleSearch::scale(const Exponents& exponents) const {
  if (exponents.identity()) return at::ones_like(x_mean_);
  at::Tensor s = x_mean_.pow(exponents.activation);
  if (exponents.weight != 0) s = s / (w_mean_.pow(exponents.weight) + 1e-4);
  return centered(s.clamp_min(1e-4));
}

std::vector<Exponents> ScaleSearch::grid() const {
  std::vector<Exponents> points{{}};
  for (int k = 0; k < options_.grid; ++k) {
    const double r = options_.grid > 1 ? static_cast<double>(k) / (options_.grid - 1) : 0.5;
    if (options_.weight_term != WeightTerm::kOn && k > 0) points.push_back({r, 0});
    // r = 1 has no weight term: it is the same point in both grids.
    if (options_.weight_term == WeightTerm::kOn || (options_.weight_term == WeightTerm::kBoth && r < 1)) {
      points.push_back({r, 1 - r});
    }
  }
  return points;
}

/// Q(W s) / s
Result<at::Tensor> ScaleSearch::rounded(const at::Tensor& weight, const QuantArgs& args,
                                        const OutputError& error, const at::Tensor& s) const {
  quant::RangeOptions range = options_.range;
  if (range.method == quant::RangeOptions::Method::kMse) {
    range.importance = error.mean_square().to(weight.device()) / s.square();
  }
  SLIM_ASSIGN(at::Tensor result, quant::fake_quantize(weight * s, args, context_.scale_dtype(), range));
  return result.div_(s);
}

ops::RangeSearch ScaleSearch::range_search(const Consumer& consumer) const {
  if (options_.range.method != quant::RangeOptions::Method::kMse) return {};
  return {consumer.error.mean_square().to(consumer.sample.device()), options_.range.max_shrink,
          options_.range.norm, options_.range.steps, 0};
}

/// Per candidate, the mean over tokens, summed over these rows. fp64 [candidates]
Result<at::Tensor> ScaleSearch::errors_of_rows(const Consumer& consumer, const at::Tensor& weight,
                                               const at::Tensor& scales) const {
  at::Tensor sum = at::zeros({scales.size(0)}, at::kDouble);
  if (!rows_are_independent(*consumer.args)) {
    for (int64_t k = 0; k < scales.size(0); ++k) {
      SLIM_ASSIGN(at::Tensor delta, rounded(weight, *consumer.args, consumer.error, scales[k]));
      sum[k].fill_(consumer.error(delta.sub_(weight)));
    }
    return sum;
  }
  const ops::RangeSearch search = range_search(consumer);
  const ops::Rounding rounding = rounding_by_rows(*consumer.args, weight.size(1), context_.scale_dtype());
  for (int64_t begin = 0; begin < weight.size(0); begin += kRowsPerSlice) {
    const at::Tensor rows = weight.narrow(0, begin, std::min(kRowsPerSlice, weight.size(0) - begin));
    sum.add_(consumer.error.of_scales(rows, scales, rounding, search));
  }
  return sum;
}

Result<at::Tensor> ScaleSearch::sampled_losses(const at::Tensor& scales) const {
  at::Tensor losses = at::zeros({scales.size(0)}, at::kDouble);
  for (const Consumer& consumer : consumers_) {
    SLIM_ASSIGN(const at::Tensor errors, errors_of_rows(consumer, consumer.sample, scales));
    losses.add_(errors, consumer.share / static_cast<double>(consumer.sample.size(0)));
  }
  return losses;
}

Result<double> ScaleSearch::full_loss(const at::Tensor& s) const {
  double loss = 0;
  for (const Consumer& consumer : consumers_) {
    const at::Tensor whole = context_.weight(consumer.id);
    const at::Tensor rows = rows_are_independent(*consumer.args) ? evenly_chosen(whole, kCheckedRows) : whole;
    SLIM_ASSIGN(const at::Tensor error, errors_of_rows(consumer, rows, s.unsqueeze(0)));
    loss += consumer.share * error.item<double>() / static_cast<double>(rows.size(0));
  }
  return loss;
}

/// Of a scale [features / repeat].
Result<double> ScaleSearch::final_loss(const at::Tensor& shared) const {
  return options_.replay ? replayed_loss(per_feature(shared)) : full_loss(per_feature(shared));
}

Result<double> ScaleSearch::replayed_loss(const at::Tensor& s) const {
  Overrides overrides;
  for (const Consumer& consumer : consumers_) {
    SLIM_ASSIGN(overrides[consumer.id],
                rounded(context_.weight(consumer.id), *consumer.args, consumer.error, s));
  }
  return context_.loss(edge_.region, overrides);
}

/// Of scales [candidates, features] on the sampled rows, each group of channels alone. fp64 [candidates, groups]
Result<at::Tensor> ScaleSearch::group_losses(const at::Tensor& scales) {
  const int64_t size = shared_group(), features = scales.size(1);
  for (Consumer& consumer : consumers_) {
    if (!consumer.blocks.defined())
      consumer.blocks = consumer.error.diagonal_blocks(size).to(consumer.sample.device()).contiguous();
  }
  at::Tensor losses = at::zeros({scales.size(0), features / size}, at::kDouble);
  for (const Consumer& consumer : consumers_) {
    const ops::Rounding rounding = rounding_by_rows(*consumer.args, features, context_.scale_dtype());
    losses.add_(
        ops::scale_losses(consumer.sample, scales, consumer.blocks, {}, rounding, range_search(consumer)),
        consumer.share / static_cast<double>(consumer.sample.size(0)));
  }
  return losses;
}

Result<std::vector<double>> ScaleSearch::ranking_losses(const std::vector<Exponents>& candidates) {
  std::vector<double> losses;
  std::vector<at::Tensor> scales;
  for (const Exponents& exponents : candidates) {
    scales.push_back(per_feature(scale(exponents)));
    if (!options_.replay) continue;
    SLIM_ASSIGN(const double loss, replayed_loss(scales.back()));
    losses.push_back(loss);
  }
  if (options_.replay || candidates.empty()) return losses;
  at::Tensor all;
  if (ranks_by_group()) {
    SLIM_ASSIGN(const at::Tensor by_group, group_losses(at::stack(scales)));
    for (size_t i = 0; i < scales.size(); ++i) {
      tried_.push_back(scales[i]);
      tried_losses_.push_back(by_group[static_cast<int64_t>(i)]);
    }
    all = by_group.sum(1).contiguous();
  } else {
    SLIM_ASSIGN(all, sampled_losses(at::stack(scales)));
  }
  const auto* const values = all.const_data_ptr<double>();
  return std::vector<double>(values, values + all.numel());
}

/// Pattern search over both exponents: steps of half the grid's, halved whenever no neighbour is better.
Status ScaleSearch::refine(Exponents& best, double& best_loss) {
  double step = 0.5 / std::max(1, options_.grid - 1);
  const bool move_weight = options_.weight_term != WeightTerm::kOff;
  for (int evaluations = 0; evaluations < options_.refine && step > 1e-3;) {
    const Exponents center = best;
    std::vector<Exponents> candidates;
    for (const auto& [da, dw] : {std::pair{step, 0.0}, {-step, 0.0}, {0.0, step}, {0.0, -step}}) {
      const Exponents candidate{center.activation + da, center.weight + dw};
      if ((dw != 0 && !move_weight) || candidate.activation < 0 || candidate.weight < 0) continue;
      candidates.push_back(candidate);
    }
    SLIM_ASSIGN(const std::vector<double> losses, ranking_losses(candidates));
    evaluations += static_cast<int>(losses.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      if (losses[i] >= best_loss) continue;
      best = candidates[i];
      best_loss = losses[i];
    }
    if (best.activation == center.activation && best.weight == center.weight) step /= 2;
  }
  return {};
}

/// The size of the groups that all consumers have in common; 0: groups cannot be looked at alone.
int64_t ScaleSearch::shared_group() const {
  const QuantArgs& first = *consumers_.front().args;
  for (const Consumer& consumer : consumers_) {
    if (consumer.args->granularity != Granularity::kGroup || consumer.args->group_size != first.group_size)
      return 0;
  }
  const int64_t features = consumers_.front().sample.size(1);
  return features % first.group_size == 0 ? first.group_size : 0;
}

/// Every group of channels with the scale of least error of its own among all that were tried, which is nearly all of its part in the
/// layers' error: groups share no scale, and the roundings of two groups are hardly correlated. Levels of groups are free; they are chosen so
/// that the scaled activations of all groups are equally large on average.
at::Tensor ScaleSearch::scale_by_group() const {
  const int64_t size = shared_group();
  const at::Tensor scales = at::stack(tried_), best = at::stack(tried_losses_).argmin(0);
  at::Tensor result = at::empty_like(x_mean_);
  for (int64_t begin = 0; begin < x_mean_.size(0); begin += size) {
    const at::Tensor mine = scales[best[begin / size].item<int64_t>()].narrow(0, begin, size);
    result.narrow(0, begin, size).copy_(mine * (x_mean_.narrow(0, begin, size) / mine).mean());
  }
  return centered(result);
}

Result<Found> ScaleSearch::run() {
  const std::vector<Exponents> candidates = grid();
  SLIM_ASSIGN(const std::vector<double> losses, ranking_losses(candidates));
  const auto least = std::min_element(losses.begin(), losses.end());
  Found found;
  found.exponents = candidates[static_cast<size_t>(least - losses.begin())];
  double best_loss = *least;
  SLIM_TRY(refine(found.exponents, best_loss));
  SLIM_ASSIGN(found.identity_loss, final_loss(scale({})));
  found.loss = found.identity_loss;
  found.scale = scale({});
  const auto keep_if_better = [&](const at::Tensor& s, bool by_group) -> Status {
    SLIM_ASSIGN(const double loss, final_loss(s));
    if (loss >= found.loss) return {};
    found.loss = loss;
    found.scale = s;
    found.identity = false;
    found.by_group = by_group;
    return {};
  };
  SLIM_TRY(keep_if_better(scale(found.exponents), false));
  if (options_.by_group && ranks_by_group() && edge_.repeat == 1 && tried_losses_.front().size(0) > 1)
    SLIM_TRY(keep_if_better(scale_by_group(), true));
  if (found.identity) found.exponents = {};
  return found;
}

}  // namespace slim::awq
