#include "prune.h"

#include <ATen/ATen.h>

#include <charconv>

#include "slim/feedback.hpp"
#include "slim/ops.hpp"

namespace slim::sparse {
namespace {

/// The layer with its weight already pruned, and a scheme that only quantizes.
class PrunedLayer final : public LayerContext {
 public:
  PrunedLayer(LayerContext& layer, at::Tensor weight)
      : layer_(layer), scheme_(layer.scheme()), weight_(std::move(weight)) {
    scheme_.sparsity.reset();
  }
  const Layer& layer() const override { return layer_.layer(); }
  const Scheme& scheme() const override { return scheme_; }
  at::Tensor weight() const override { return weight_.clone(); }
  at::Tensor bias() const override { return layer_.bias(); }
  at::ScalarType scale_dtype() const override { return layer_.scale_dtype(); }
  const Statistic* find(std::string_view id) const override { return layer_.find(id); }
  double fused_abs_max() const override { return layer_.fused_abs_max(); }
  TensorMap& port_cache() override { return layer_.port_cache(); }
  uint64_t seed() const override { return layer_.seed(); }
  Notes& notes() override { return layer_.notes(); }

 private:
  LayerContext& layer_;
  Scheme scheme_;
  at::Tensor weight_;
};

/// Integers whose scales are known before a column is reached: the sweep can round what it keeps.
bool rounds_in_the_sweep(const Scheme& scheme) {
  if (!scheme.weight || scheme.weight->type != NumberType::kInt) return false;
  return scheme.weight->granularity == Granularity::kGroup ||
         scheme.weight->granularity == Granularity::kChannel;
}

Status check_finite(const at::Tensor& weight, const std::string& name) {
  if (at::isfinite(weight).all().item<bool>()) return {};
  return {Code::kNumeric,
          name + ": the weight holds NaN or Inf; the checkpoint is damaged or a transform overflowed"};
}

/// E[x²] as the statistics that were collected have it; undefined if no token was seen.
at::Tensor mean_square(LayerContext& context) {
  if (const auto* gram = context.statistic<Gram>(); gram && gram->tokens > 0)
    return gram->sum().diagonal() / gram->tokens;
  const auto* moments = context.statistic<ChannelMoments>();
  return moments && moments->tokens > 0 ? moments->mean_square() : at::Tensor();
}

at::Tensor pruned_by_score(const PruneOptions& options, LayerContext& context) {
  const at::Tensor weight = context.weight();
  at::Tensor importance;
  if (options.method != PruneOptions::Method::kMagnitude) {
    const at::Tensor square = mean_square(context);
    if (square.defined()) {
      importance = square.sqrt();
    } else {
      context.notes().note("pruned by magnitude", context.layer().name,
                           "no calibration token reached this layer");
    }
  }
  const Sparsity& sparsity = *context.scheme().sparsity;
  return weight * ops::sparsity_mask(weight, importance, sparsity.keep, sparsity.of);
}

/// Scales of a group, found on its compensated weights; those that will be dropped are small and hardly move them.
Result<quant::Params> group_params(const quant::SweepGroup& group, const QuantArgs& args,
                                   at::ScalarType dtype, const at::Tensor& importance) {
  QuantArgs whole = args;
  whole.granularity = Granularity::kChannel;
  quant::RangeOptions range;
  range.method = quant::RangeOptions::Method::kMse;
  range.importance = importance.narrow(0, group.begin, group.weight.size(1));
  return quant::choose_params(group.weight, whole, dtype, range);
}

Result<Solved> pruned_by_sweep(LayerContext& context, const quant::InputFactor& factor) {
  const Scheme& scheme = context.scheme();
  const at::Tensor importance = mean_square(context);
  quant::SweepRequest request;
  request.weight = context.weight();
  request.factor = factor;
  request.sparsity = scheme.sparsity;
  if (!rounds_in_the_sweep(scheme)) {
    SLIM_ASSIGN(const quant::Swept swept, quant::sweep(std::move(request)));
    PrunedLayer pruned(context, swept.weight);
    return quant::round_to_nearest(pruned);
  }
  const QuantArgs& args = *scheme.weight;
  PrunedLayer unpruned(context, context.weight());
  SLIM_ASSIGN(Solved solved, quant::round_to_nearest(unpruned));
  auto& quantized = std::get<Quantized>(solved.weight);
  request.args = &args;
  request.params = {quantized.scale, quantized.zero};
  const int64_t in = request.weight.size(1),
                group = args.granularity == Granularity::kGroup ? args.group_size : in;
  request.group = at::arange(in, request.weight.options().dtype(at::kInt)).floor_divide(group);
  request.find_params = [&](const quant::SweepGroup& columns) {
    return group_params(columns, args, context.scale_dtype(), importance);
  };
  SLIM_ASSIGN(const quant::Swept swept, quant::sweep(std::move(request)));
  quantized.codes = swept.codes;
  quantized.scale = swept.params.scale;
  quantized.zero = swept.params.zero;
  return solved;
}

void record_loss(LayerContext& context, const Solved& solved) {
  const auto* gram = context.statistic<Gram>();
  if (!gram || gram->tokens <= 0) return;
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  const at::Tensor decoded = quantized ? quant::decode(*quantized) : std::get<Dense>(solved.weight).weight;
  const at::Tensor errors = quant::row_errors(decoded - context.weight(), *gram);
  context.notes().metric(context.layer().name, "loss", errors.mean().item<double>());
}

}  // namespace

PruneOptions PruneOptions::from(const Options& options) {
  PruneOptions result;
  const std::string& method = options.at("prune_method");
  result.method = method == "wanda"       ? Method::kWanda
                  : method == "magnitude" ? Method::kMagnitude
                                          : Method::kSparseGpt;
  const std::string& damp = options.at("damp_percent");
  std::from_chars(damp.data(), damp.data() + damp.size(), result.damp);  // the schema has checked it
  return result;
}

Status accepts_pruning(const Scheme& scheme) {
  const bool grouped = scheme.weight && scheme.weight->granularity == Granularity::kGroup;
  if (!grouped || scheme.weight->group_size % scheme.sparsity->of == 0) return {};
  return {Code::kUnsupported, "scheme " + scheme.name + ": groups of " +
                                  std::to_string(scheme.weight->group_size) + " would cut runs of " +
                                  std::to_string(scheme.sparsity->of) +
                                  " inputs; use a group size that is a multiple of it, or -1"};
}

void observe_pruning(const PruneOptions& options, const Layer& layer, const Scheme& scheme, int64_t features,
                     Observations& observations) {
  const bool static_input = scheme.input && !scheme.input->dynamic;
  if (options.method == PruneOptions::Method::kSparseGpt)
    quant::observe_factor(observations, layer.input, features);
  if (options.method == PruneOptions::Method::kWanda || static_input)
    observations.want<ChannelMoments>(layer.input, features);
}

Result<Solved> solve_pruning(const PruneOptions& options, LayerContext& context) {
  SLIM_TRY(check_finite(context.weight(), context.layer().weight.tensor));
  if (options.method == PruneOptions::Method::kSparseGpt) {
    SLIM_ASSIGN(const auto factor, quant::input_factor(context, "pruned by magnitude", options.damp,
                                                       quant::SweepOrder::kStored));
    if (factor) {
      SLIM_ASSIGN(Solved solved, pruned_by_sweep(context, *factor));
      record_loss(context, solved);
      return solved;
    }
  }
  PruneOptions by_score = options;
  if (options.method == PruneOptions::Method::kSparseGpt) by_score.method = PruneOptions::Method::kMagnitude;
  PrunedLayer pruned(context, pruned_by_score(by_score, context));
  SLIM_ASSIGN(Solved solved, quant::round_to_nearest(pruned));
  record_loss(context, solved);
  return solved;
}

}  // namespace slim::sparse
