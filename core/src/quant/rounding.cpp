#include "slim/rounding.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <cstdlib>

#include "quant/quantize.h"

namespace slim::quant {
namespace {

bool static_input(const Scheme* scheme) { return scheme && scheme->input && !scheme->input->dynamic; }

/// "model.layers.0.mlp.experts.down_proj[3]" for a slice of a packed tensor.
std::string tensor_of(const Layer& layer) {
  if (layer.weight.tensor.empty()) return layer.name;
  return layer.weight.index ? layer.weight.tensor + "[" + std::to_string(*layer.weight.index) + "]"
                            : layer.weight.tensor;
}

Result<Quantized> round_weight(LayerContext& context, const Rounding& rounding) {
  const QuantArgs& args = *context.scheme().weight;
  auto* const stored = dynamic_cast<StoredWeight*>(&context);
  const at::Tensor weight = stored ? stored->stored_weight() : context.weight();
  RangeOptions range = rounding.weight;
  if (rounding.fuse_scales && args.granularity == Granularity::kTensor) {
    range.method = RangeOptions::Method::kMinMax;
    range.fused_abs_max = context.fused_abs_max();
  }
  const Result<Measured> rounded = quantize(weight, args, context.scale_dtype(), range, rounding.arithmetic);
  if (!rounded.ok()) return rounded.status().in(tensor_of(context.layer()));
  if (stored) stored->measured(rounded->quantized.codes, rounded->error);
  return rounded->quantized;
}

Status round_input(LayerContext& context, const InputRange& method, Solved& solved) {
  SLIM_ASSIGN(const ValueRange range, input_range(context, method));
  const auto bound = [](double value) { return at::full({1}, value, at::kFloat); };
  const Params params =
      params_from_range(bound(range.low), bound(range.high), *context.scheme().input, context.scale_dtype());
  if (!at::isfinite(params.scale).all().item<bool>()) {
    return {
        Code::kNumeric,
        context.layer().name +
            ": the scale of its input is too large for the dtype that the output format stores scales in"};
  }
  solved.input_scale = params.scale;
  solved.input_zero = params.zero;
  return {};
}

ValueRange histogram_range(const Histogram& histogram, const InputRange& method, const QuantArgs& args) {
  switch (method.method) {
    case InputRange::Method::kPercentile:
      return percentile_range(histogram, method.percent, args.symmetric);
    case InputRange::Method::kQuantileStepping:
      return quantile_stepping_range(histogram);
    default:
      return least_squares_range(histogram, args);
  }
}

}  // namespace

void observe_inputs(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
                    const InputRange& method, Observations& observations) {
  for (const Layer& layer : plan.layers) {
    if (!static_input(schemes[static_cast<size_t>(layer.id)])) continue;
    if (method.method == InputRange::Method::kMinMax) {
      observations.want<ChannelMoments>(layer.input, plan.ports[static_cast<size_t>(layer.input)].features);
    } else {
      observations.want<Histogram>(layer.input);
    }
  }
}

Result<ValueRange> input_range(const LayerContext& context, const InputRange& method) {
  const std::string& name = context.layer().name;
  const bool extremes = method.method == InputRange::Method::kMinMax;
  const auto* moments = extremes ? context.statistic<ChannelMoments>() : nullptr;
  const auto* histogram = extremes ? nullptr : context.statistic<Histogram>();
  const double tokens = moments ? moments->tokens : histogram ? histogram->tokens : 0;
  if (tokens <= 0) {
    return Status(Code::kInvalidArgument,
                  name +
                      ": static activation scales need calibration data, and no token reached this "
                      "layer; pass --calib, or a scheme with dynamic activations");
  }
  ValueRange range;
  if (moments) range = {moments->min().min().item<double>(), moments->max().max().item<double>()};
  const bool finite = moments ? std::isfinite(range.low) && std::isfinite(range.high) : histogram->finite();
  if (!finite) return Status(Code::kNumeric, name + ": the layer's input holds NaN or Inf");
  return moments ? range : histogram_range(*histogram, method, *context.scheme().input);
}

Result<Solved> round_layer(LayerContext& context, const Rounding& rounding) {
  const Scheme& scheme = context.scheme();
  if (scheme.sparsity) {
    return Status(
        Code::kUnsupported,
        context.layer().name + ": plain rounding does not prune, which scheme " + scheme.name + " asks for");
  }
  Solved solved;
  if (scheme.weight) {
    SLIM_ASSIGN(solved.weight, round_weight(context, rounding));
  } else {
    solved.weight = Dense{context.weight()};
  }
  if (static_input(&scheme)) SLIM_TRY(round_input(context, rounding.input, solved));
  return solved;
}

Result<Solved> round_to_nearest(LayerContext& context, const RangeOptions& options,
                                at::ScalarType arithmetic) {
  // A searched range is each layer's own.
  const bool fuse = options.method == RangeOptions::Method::kMinMax;
  return round_layer(context, {options, {}, fuse, arithmetic});
}

Status RoundingAlgorithm::setup(const Options& options) {
  const auto is = [&](std::string_view key, std::string_view value) {
    const auto found = options.find(key);
    return found != options.end() && found->second == value;
  };
  rounding_ = {};
  InputRange& input = rounding_.input;
  if (is("activation_range", "percentile")) input.method = InputRange::Method::kPercentile;
  if (is("activation_range", "mse") || is("activation_range", "histogram"))
    input.method = InputRange::Method::kLeastSquares;
  if (const auto percent = options.find("percentile"); percent != options.end()) {
    input.percent = std::strtod(percent->second.c_str(), nullptr);
  }
  if (is("weight_range", "mse")) rounding_.weight.method = RangeOptions::Method::kMse;
  rounding_.fuse_scales = is("fuse_scales", "true");
  if (is("arithmetic", "bf16")) rounding_.arithmetic = at::kBFloat16;
  if (is("arithmetic", "fp16")) rounding_.arithmetic = at::kHalf;
  if (rounding_.fuse_scales && rounding_.weight.method == RangeOptions::Method::kMse) {
    return {Code::kInvalidArgument,
            "fuse_scales = true and weight_range = mse contradict each other: a shared scale spans the "
            "largest weight of all layers that share it; leave one out"};
  }
  return {};
}

void RoundingAlgorithm::observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
                                Observations& observations) const {
  observe_inputs(plan, schemes, rounding_.input, observations);
}

Result<Solved> RoundingAlgorithm::solve(LayerContext& context) { return round_layer(context, rounding_); }

}  // namespace slim::quant
