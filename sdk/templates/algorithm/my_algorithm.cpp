// SPDX-License-Identifier: Apache-2.0
// Rounding in ranges of least error: every group of weights gets the range that loses least of the layer's output, where an
// input channel counts as much as its activations are large, E[x²].
#include <ATen/ATen.h>

#include <charconv>

#include "slim/plugin.hpp"
#include "slim/quant.hpp"
#include "slim/statistic.hpp"

namespace {
using namespace slim;

/// A weight [out, in] as [out, groups, group size]: the last dimension shares one scale.
at::Tensor grouped(const at::Tensor& weight, const QuantArgs& args) {
  const bool rows = args.granularity == Granularity::kChannel;
  return weight.unflatten(1, {-1, rows ? weight.size(1) : args.group_size});
}

class MyAlgorithm final : public Algorithm {
 public:
  Status setup(const Options& options) override {
    // The schema below has checked them: every option is there, and is a number in its range.
    const std::string& steps = options.at("steps");
    std::from_chars(steps.data(), steps.data() + steps.size(), steps_);
    smallest_ = std::stod(options.at("smallest"));
    return {};
  }

  std::string_view default_scheme() const override { return "w4a16"; }

  Status accepts(const Scheme& scheme) const override {
    const bool rows_or_groups = scheme.weight && (scheme.weight->granularity == Granularity::kGroup ||
                                                  scheme.weight->granularity == Granularity::kChannel);
    if (rows_or_groups && scheme.weight->type == NumberType::kInt && !scheme.input && !scheme.sparsity) return {};
    return {Code::kUnsupported, "scheme " + scheme.name + ": my_algorithm quantizes weights alone, to integers, by groups or rows"};
  }

  void observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes, Observations& observations) const override {
    for (const Layer& layer : plan.layers) {
      if (!schemes[static_cast<size_t>(layer.id)]) continue;  // stays in float
      observations.want<ChannelMoments>(layer.input, plan.ports[static_cast<size_t>(layer.input)].features);
    }
  }

  Result<Solved> solve(LayerContext& context) override {
    const QuantArgs& args = *context.scheme().weight;
    const at::Tensor weight = context.weight();
    SLIM_TRY(check(weight, args));
    const at::Tensor importance = importance_of(context, weight.size(1));
    const quant::Params params = search(weight, importance, args, context.scale_dtype());
    return Solved{Quantized{args, quant::encode(weight, params, args), params.scale, params.zero, {}}, {}, {}, {}, {}};
  }

 private:
  static Status check(const at::Tensor& weight, const QuantArgs& args) {
    if (args.granularity == Granularity::kGroup && weight.size(1) % args.group_size != 0) {
      return {Code::kUnsupported, std::to_string(weight.size(1)) + " input channels are no whole groups of " +
                                      std::to_string(args.group_size) + "; choose another --group-size"};
    }
    if (!at::isfinite(weight).all().item<bool>()) return {Code::kNumeric, "the weight holds NaN or Inf"};
    return {};
  }

  /// E[x²] of each input channel [in]; ones for an expert that no token reached.
  static at::Tensor importance_of(LayerContext& context, int64_t features) {
    const auto* moments = context.statistic<ChannelMoments>();
    if (moments && moments->tokens > 0) return moments->mean_square();
    context.notes().note("rounded without activations", context.layer().name, "no token reached the layer");
    return at::ones({features});
  }

  /// Shrinks the range of every group step by step and keeps the step of least error.
  quant::Params search(const at::Tensor& weight, const at::Tensor& importance, const QuantArgs& args,
                       at::ScalarType scale_dtype) const {
    const at::Tensor groups = grouped(weight, args);
    const at::Tensor low = groups.amin(-1), high = groups.amax(-1);
    quant::Params best;
    at::Tensor least;
    for (int step = 0; step <= steps_; ++step) {
      const double share = 1 - (1 - smallest_) * step / std::max(steps_, 1);
      const quant::Params params = quant::params_from_range(low * share, high * share, args, scale_dtype);
      const at::Tensor lost = (quant::fake_quantize(weight, params, args) - weight).square() * importance;
      const at::Tensor error = grouped(lost, args).sum(-1);
      if (step == 0) {
        best = params;
        least = error;
        continue;
      }
      const at::Tensor better = error < least;
      least = at::where(better, error, least);
      best.scale = at::where(better, params.scale, best.scale);
      if (best.zero.defined()) best.zero = at::where(better, params.zero, best.zero);
    }
    return best;
  }

  int steps_ = 0;
  double smallest_ = 0;
};

constexpr char kSchema[] = R"({"type":"object","properties":{
  "steps":{"type":"integer","default":30,"minimum":0,"maximum":1000,"description":"ranges that are tried"},
  "smallest":{"type":"number","default":0.6,"exclusiveMinimum":0,"maximum":1,
              "description":"the smallest range, as a share of the largest"}}})";
}  // namespace

SLIM_ALGORITHM_PLUGIN("my_algorithm", MyAlgorithm, "Rounding in ranges of least output error", kSchema)
