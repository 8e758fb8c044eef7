#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>

#include "slim/feedback.hpp"
#include "slim/ops.hpp"
#include "slim/phase.hpp"
#include "slim/plugin.hpp"

namespace slim::gptq {
namespace {

/// GPTQ (Frantar et al. 2022): rounds a layer column by column; every column's error is made good by the columns after it, as far as
/// the Gram matrix of the inputs allows. Integer weights of 2 to 8 bits, in groups or per channel. Never worse than rounding
/// on its own loss δ E[x xᵀ] δᵀ: rows that are keep the rounded codes.
class Gptq final : public Algorithm {
 public:
  Status setup(const Options& options) override;
  std::string_view default_scheme() const override { return "w4a16"; }
  Status accepts(const Scheme&) const override;
  bool scatters_groups(const Scheme& scheme) const override {
    return desc_act_ && !static_groups_ && scheme.weight->granularity == Granularity::kGroup;
  }
  void observe(const BlockPlan&, const std::vector<const Scheme*>& schemes, Observations&) const override;
  void count_operations(const Layer&, const Scheme&, double tokens, PhaseOperations&) const override;
  bool transforms() const override { return false; }
  Result<Solved> solve(LayerContext&) override;

 private:
  enum class Range : uint8_t { kMinMax, kMse, kSweep };

  quant::SweepOrder order(const QuantArgs&) const;
  quant::RangeOptions range_options(const at::Tensor& mean_square) const;
  Result<Quantized> rounded_in_order(LayerContext&, const at::Tensor& order,
                                     const at::Tensor& mean_square) const;
  Result<quant::Params> group_params(const quant::SweepGroup&, const QuantArgs&, at::ScalarType,
                                     const at::Tensor& mean_square) const;
  Result<quant::Swept> swept(LayerContext&, const quant::InputFactor&, const Quantized& rounded,
                             const at::Tensor& mean_square) const;

  double damp_ = 0.01;
  bool desc_act_ = false, static_groups_ = true, group_aware_ = true, refit_ = true;
  Range range_ = Range::kSweep;
};

bool flag(const Options& options, std::string_view key) { return options.find(key)->second == "true"; }

Status Gptq::setup(const Options& options) {
  const std::string& damp = options.at("damp_percent");
  std::from_chars(damp.data(), damp.data() + damp.size(), damp_);  // the schema has checked it
  desc_act_ = flag(options, "desc_act");
  static_groups_ = flag(options, "static_groups");
  group_aware_ = flag(options, "act_group_aware");
  refit_ = flag(options, "refit");
  const std::string& range = options.at("range");
  range_ = range == "minmax" ? Range::kMinMax : range == "mse" ? Range::kMse : Range::kSweep;
  return {};
}

Status Gptq::accepts(const Scheme& scheme) const {
  if (scheme.sparsity)
    return {Code::kUnsupported, "gptq does not prune; scheme " + scheme.name + " needs the sparse plugin"};
  if (!scheme.weight)
    return {Code::kUnsupported, "gptq rounds weights; scheme " + scheme.name + " leaves them in float"};
  const QuantArgs& args = *scheme.weight;
  const bool by_row = args.granularity == Granularity::kGroup || args.granularity == Granularity::kChannel;
  if (args.type == NumberType::kInt && by_row && scheme.name != "w8a8s") return {};
  return {Code::kUnsupported,
          "gptq rounds to integers with scales per group or channel, which is not what scheme " +
              scheme.name + " asks for; use w2a16, w3a16, w4a16, w8a16 (also _asym), w8a8 or w8a8_static"};
}

void Gptq::observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
                   Observations& observations) const {
  for (const Layer& layer : plan.layers) {
    const Scheme* scheme = schemes[static_cast<size_t>(layer.id)];
    if (!scheme || !scheme->weight) continue;
    const int64_t features = plan.ports[static_cast<size_t>(layer.input)].features;
    quant::observe_factor(observations, layer.input, features);
    if (scheme->input && !scheme->input->dynamic) observations.want<ChannelMoments>(layer.input, features);
  }
}

/// Matrix products only: what each panel puts on the columns after it, candidates of ranges, and the loss of plain rounding.
void Gptq::count_operations(const Layer& layer, const Scheme& scheme, double, PhaseOperations& counts) const {
  constexpr double kCandidates = 14, kCandidatesOfEnds = 10;
  const QuantArgs& args = *scheme.weight;
  const auto out = static_cast<double>(layer.out), in = static_cast<double>(layer.in);
  counts.add(Phase::kSweep, 2 * out * in * in);
  if (range_ != Range::kSweep || args.granularity != Granularity::kGroup) return;
  counts.add(Phase::kRangeSearch, out * in * static_cast<double>(args.group_size) *
                                      (kCandidates + (args.symmetric ? 0 : kCandidatesOfEnds)));
}

quant::SweepOrder Gptq::order(const QuantArgs& args) const {
  if (desc_act_) return quant::SweepOrder::kSalience;
  if (!group_aware_) return quant::SweepOrder::kStored;
  return args.granularity == Granularity::kGroup ? quant::SweepOrder::kGroupAware
                                                 : quant::SweepOrder::kSalience;
}

quant::RangeOptions Gptq::range_options(const at::Tensor& mean_square) const {
  quant::RangeOptions options;
  if (range_ == Range::kMinMax) return options;
  options.method = quant::RangeOptions::Method::kMse;
  options.importance = mean_square;
  return options;
}

/// Rounding with groups of channels that follow each other in `order` instead of the stored order.
Result<Quantized> Gptq::rounded_in_order(LayerContext& context, const at::Tensor& order,
                                         const at::Tensor& mean_square) const {
  const QuantArgs& args = *context.scheme().weight;
  const at::Tensor weight = context.weight().index_select(1, order);
  const at::Tensor back = at::argsort(order);
  SLIM_ASSIGN(const quant::Params params,
              quant::choose_params(weight, args, context.scale_dtype(),
                                   range_options(mean_square.index_select(0, order))));
  const at::Tensor codes = quant::encode(weight, params, args).index_select(1, back);
  return Quantized{args, codes, params.scale, params.zero, back.floor_divide(args.group_size).to(at::kInt)};
}

Result<quant::Params> Gptq::group_params(const quant::SweepGroup& group, const QuantArgs& args,
                                         at::ScalarType scale_dtype, const at::Tensor& mean_square) const {
  constexpr int64_t kLargestGroup = 256;  // the cost of a candidate grows with the square of the group
  if (range_ == Range::kSweep && group.weight.size(1) <= kLargestGroup) {
    const PhaseTimer timer(Phase::kRangeSearch);
    const auto [low, high] = ops::sweep_ranges(
        group.weight, group.factor, {1, group.weight.size(1), args.bits, false, args.symmetric, scale_dtype});
    return quant::params_from_range(low, high, args, scale_dtype);
  }
  QuantArgs whole = args;
  whole.granularity = Granularity::kChannel;
  const at::Tensor importance = group.channels.defined()
                                    ? mean_square.index_select(0, group.channels)
                                    : mean_square.narrow(0, group.begin, group.weight.size(1));
  return quant::choose_params(group.weight, whole, scale_dtype, range_options(importance));
}

Result<quant::Swept> Gptq::swept(LayerContext& context, const quant::InputFactor& factor,
                                 const Quantized& rounded, const at::Tensor& mean_square) const {
  const QuantArgs& args = *context.scheme().weight;
  quant::SweepRequest request;
  request.weight = context.weight();
  request.factor = factor;
  request.args = &args;
  request.params = {rounded.scale, rounded.zero};
  const int64_t in = request.weight.size(1);
  const at::TensorOptions index = request.weight.options().dtype(at::kInt);
  const bool grouped = args.granularity == Granularity::kGroup;
  request.group = rounded.group_index.defined() ? rounded.group_index
                  : grouped                     ? at::arange(in, index).floor_divide(args.group_size)
                                                : at::zeros({in}, index);
  const bool groups_lie_together = !grouped || !desc_act_ || scatters_groups(context.scheme());
  if (refit_ && groups_lie_together) {
    request.find_params = [&](const quant::SweepGroup& group) {
      return group_params(group, args, context.scale_dtype(), mean_square);
    };
  }
  return quant::sweep(std::move(request));
}

Quantized rows_of(const Quantized& whole, int64_t begin, int64_t count) {
  const auto rows = [&](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.narrow(0, begin, count) : tensor;
  };
  return {whole.args, rows(whole.codes), rows(whole.scale), rows(whole.zero), whole.group_index};
}

/// Row by row the codes and scales of least loss; in slices of rows, so that what is compared stays small beside the weight.
void keep_better_rows(LayerContext& context, const Gram& gram, const quant::InputFactor& factor,
                      const quant::Swept& swept, Quantized& rounded) {
  constexpr int64_t kSliceElements = int64_t{16} << 20;
  const at::Tensor weight = context.weight();
  const at::Tensor sweep_errors = quant::row_errors(swept, weight, factor, gram);
  const int64_t rows = weight.size(0), slice = std::clamp<int64_t>(kSliceElements / weight.size(1), 1, rows);
  int64_t worse = 0;
  double loss = 0, loss_of_rounding = 0;
  for (int64_t begin = 0; begin < rows; begin += slice) {
    const int64_t count = std::min(slice, rows - begin);
    const at::Tensor before = weight.narrow(0, begin, count);
    const Quantized mine = rows_of(rounded, begin, count);
    const at::Tensor rounding_error = quant::row_errors(quant::decode(mine).sub_(before), gram);
    const at::Tensor sweep_error = sweep_errors.narrow(0, begin, count);
    const at::Tensor better = sweep_error <= rounding_error;
    const auto choose = [&](const at::Tensor& ours, const at::Tensor& theirs) {
      if (ours.defined()) theirs.copy_(at::where(better.unsqueeze(1), ours.narrow(0, begin, count), theirs));
    };
    choose(swept.codes, mine.codes);
    choose(swept.params.scale, mine.scale);
    choose(swept.params.zero, mine.zero);
    worse += count - better.sum().item<int64_t>();
    loss += at::where(better, sweep_error, rounding_error).sum(at::kDouble).item<double>();
    loss_of_rounding += rounding_error.sum(at::kDouble).item<double>();
  }
  const std::string& name = context.layer().name;
  if (worse > 0) {
    context.notes().note("rows that gptq does not improve are rounded", name,
                         std::to_string(worse) + " of " + std::to_string(rows));
  }
  context.notes().metric(name, "loss", loss / static_cast<double>(rows));
  context.notes().metric(name, "loss of rounding", loss_of_rounding / static_cast<double>(rows));
}

Result<Solved> Gptq::solve(LayerContext& context) {
  const QuantArgs& args = *context.scheme().weight;
  const auto* gram = context.statistic<Gram>();
  const bool seen = gram && gram->tokens > 0;
  const at::Tensor mean_square = seen ? at::Tensor(gram->sum().diagonal() / gram->tokens) : at::Tensor();
  SLIM_ASSIGN(Solved solved,
              quant::round_to_nearest(context, seen ? range_options(mean_square) : quant::RangeOptions{}));
  SLIM_ASSIGN(const auto factor,
              quant::input_factor(context, "rounding instead of gptq", damp_, order(args), args.group_size));
  if (!factor) return solved;
  auto& rounded = std::get<Quantized>(solved.weight);
  if (scatters_groups(context.scheme())) {
    SLIM_ASSIGN(rounded, rounded_in_order(context, factor->order, mean_square));
  }
  SLIM_ASSIGN(const quant::Swept swept, swept(context, *factor, rounded, mean_square));
  keep_better_rows(context, *gram, *factor, swept, rounded);
  return solved;
}

constexpr char kSchema[] = R"json({"type":"object","properties":{
  "damp_percent":{"type":"number","minimum":0,"maximum":1,"default":0.01,
                  "description":"share of the mean of E[x²] that is added to the diagonal of the Gram matrix"},
  "act_group_aware":{"type":"boolean","default":true,
                     "description":"take channels in the order of their activations, but group by group"},
  "desc_act":{"type":"boolean","default":false,
              "description":"take channels in the order of their activations, whatever their group; instead of act_group_aware"},
  "static_groups":{"type":"boolean","default":true,
                   "description":"with desc_act: groups stay as stored; false: groups follow the order, and g_idx is stored"},
  "range":{"type":"string","enum":["minmax","mse","sweep"],"default":"sweep",
           "description":"ranges of groups: extremes; least squared error weighted by E[x²]; least error of the sweep itself"},
  "refit":{"type":"boolean","default":true,
           "description":"find a group's range on the compensated weights; not with desc_act and static_groups"}}})json";
}  // namespace
}  // namespace slim::gptq
SLIM_ALGORITHM_PLUGIN("gptq", slim::gptq::Gptq, "Rounding with error feedback", slim::gptq::kSchema)
