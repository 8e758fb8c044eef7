#include <charconv>
#include <cstdio>

#include "clip.h"
#include "scale_search.h"
#include "slim/phase.hpp"
#include "slim/plugin.hpp"
#include "slim/quant.hpp"

namespace slim::awq {
namespace {

int integer(const Options& options, std::string_view key) {
  const std::string& text = options.find(key)->second;
  int value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);  // the schema has checked it
  return value;
}

/// Activation-aware weight quantization (Lin et al. 2023): moves a per-channel scale from activations into weights where that
/// lowers the error of rounding, then rounds with ranges that minimise the error of the layer's output.
class Awq final : public Algorithm {
 public:
  Status setup(const Options& options) override;
  std::string_view default_scheme() const override { return "w4a16_asym"; }
  Status accepts(const Scheme&) const override;
  void observe(const BlockPlan&, const std::vector<const Scheme*>& schemes, Observations&) const override;
  void count_operations(const Layer&, const Scheme&, double tokens, PhaseOperations&) const override;
  Status transform(BlockContext&) override;
  Result<Solved> solve(LayerContext&) override;

 private:
  enum class Clip : uint8_t { kNone, kDiagonal, kGram, kJoint };
  Status scale_edge(BlockContext&, const ScaleEdge&);
  bool uses(const ScaleEdge& edge) const { return norms_and_linears_ || edge.fold != Fold::kLinearRows; }

  SearchOptions search_;
  Clip clip_ = Clip::kJoint;
  bool norms_and_linears_ = true;
};

bool quantizes_weight(const Scheme* scheme) { return scheme && scheme->weight; }

std::vector<LayerId> quantized_consumers(const ScaleEdge& edge,
                                         const std::function<const Scheme*(LayerId)>& scheme) {
  std::vector<LayerId> layers;
  for (const LayerId id : edge.consumers) {
    if (quantizes_weight(scheme(id))) layers.push_back(id);
  }
  return layers;
}

Status Awq::setup(const Options& options) {
  search_ = {};
  search_.grid = integer(options, "grid");
  search_.refine = integer(options, "refine");
  search_.rows = integer(options, "rows");
  search_.replay = options.at("objective") == "replay";
  const std::string& term = options.at("weight_term");
  search_.weight_term = term == "on" ? WeightTerm::kOn : term == "off" ? WeightTerm::kOff : WeightTerm::kBoth;
  if (options.at("search_range") == "mse") search_.range.method = quant::RangeOptions::Method::kMse;
  const std::string& clip = options.at("clip");
  clip_ = clip == "none"       ? Clip::kNone
          : clip == "diagonal" ? Clip::kDiagonal
          : clip == "gram"     ? Clip::kGram
                               : Clip::kJoint;
  norms_and_linears_ = options.at("edges") == "all";
  search_.by_group = options.at("exponents") == "group";
  return {};
}

Status Awq::accepts(const Scheme& scheme) const {
  if (!scheme.weight)
    return {Code::kUnsupported, "awq scales weights; scheme " + scheme.name + " leaves them in float"};
  if (scheme.sparsity)
    return {Code::kUnsupported, "awq does not prune; scheme " + scheme.name + " needs the sparse plugin"};
  return {};
}

void Awq::observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
                  Observations& observations) const {
  for (const Layer& layer : plan.layers) {
    if (!quantizes_weight(schemes[static_cast<size_t>(layer.id)])) continue;
    const int64_t features = plan.ports[static_cast<size_t>(layer.input)].features;
    observations.want<ChannelMoments>(layer.input, features);
    // Few tokens: keeping them all is exact, and cheaper than a product of features² per candidate.
    int64_t tokens = observations.expected_tokens();
    if (layer.expert >= 0 && plan.moe) {
      tokens =
          tokens * plan.moe->top_k / std::max<int64_t>(1, static_cast<int64_t>(plan.moe->experts.size()));
    }
    if (tokens < features) {
      observations.want<ActivationRows>(layer.input, features, features);
    } else {
      observations.want<Gram>(layer.input, features);
    }
  }
  for (const ScaleEdge& edge : plan.edges) {
    const auto layers =
        quantized_consumers(edge, [&](LayerId id) { return schemes[static_cast<size_t>(id)]; });
    if (layers.empty() || !uses(edge)) continue;
    observations.want<ChannelMoments>(edge.port, plan.ports[static_cast<size_t>(edge.port)].features);
    if (search_.replay && edge.region >= 0) observations.keep_inputs(edge.region);
  }
}

/// Matrix products only: the candidates of both searches, what the winner is checked by, and what groups put on each other.
void Awq::count_operations(const Layer& layer, const Scheme& scheme, double tokens,
                           PhaseOperations& counts) const {
  constexpr double kChecks = 3, kCheckedRows = 512, kCandidatesOfRange = 55,
                   kCandidatesOfEnds = 24;  // alone, and beside the others
  const QuantArgs& args = *scheme.weight;
  const auto out = static_cast<double>(layer.out), in = static_cast<double>(layer.in);
  const double kept = std::min(tokens, in), of_pairs = tokens < in ? 2 * kept : in;
  const bool grouped = args.granularity == Granularity::kGroup;
  const double ranked = std::min<double>(out, search_.rows), checked = std::min(out, kCheckedRows);
  const double candidates = 2 * search_.grid + search_.refine;
  counts.add(Phase::kScaleSearch,
             ranked * in * candidates * (grouped ? 2 * static_cast<double>(args.group_size) : of_pairs) +
                 kChecks * checked * in * of_pairs);
  if (clip_ != Clip::kJoint || !grouped) return;
  const double tried = kCandidatesOfRange + (args.symmetric ? 0 : kCandidatesOfEnds);
  counts.add(Phase::kRangeSearch,
             out * in * (tried * static_cast<double>(args.group_size) + (tokens < in ? 6 * kept : 2 * in)));
}

Status Awq::transform(BlockContext& context) {
  for (const ScaleEdge& edge : context.plan().edges) {
    if (uses(edge)) SLIM_TRY(scale_edge(context, edge).in(context.plan().name + ": " + edge.name));
  }
  return {};
}

Status Awq::scale_edge(BlockContext& context, const ScaleEdge& edge) {
  const auto layers = quantized_consumers(edge, [&](LayerId id) { return context.scheme(id); });
  if (layers.empty()) return {};
  const PhaseTimer timer(Phase::kScaleSearch);
  const std::string where = context.plan().name + ": " + edge.name;
  SearchOptions options = search_;
  options.replay = search_.replay && edge.region >= 0;
  Result<ScaleSearch> search = ScaleSearch::make(context, edge, layers, options);
  if (!search.ok() && search.status().code() == Code::kNotFound) {
    context.notes().note("no awq scale", where, search.status().message());
    return {};
  }
  if (!search.ok()) return search.status();
  SLIM_ASSIGN(const Found found, search->run());
  Notes& notes = context.notes();
  notes.metric(where, "awq activation exponent", found.exponents.activation);
  notes.metric(where, "awq weight exponent", found.exponents.weight);
  notes.metric(where, "awq loss before", found.identity_loss);
  notes.metric(where, "awq loss after", found.loss);
  if (found.identity) return {};
  SLIM_ASSIGN(const at::Tensor applied, context.fold(edge, found.scale));
  return {};
}

/// The mean over rows of the output error, for the report: of all, or of evenly chosen ones of a large layer.
double mean_loss(const at::Tensor& weight, const Quantized& quantized, const OutputError& error) {
  constexpr int64_t kRows = 512;
  at::Tensor delta = quant::decode(quantized).sub_(weight);
  if (const int64_t every = delta.size(0) / kRows; every > 1)
    delta = delta.slice(0, 0, delta.size(0), every).contiguous();
  return error(delta) / static_cast<double>(delta.size(0));
}

Result<Solved> Awq::solve(LayerContext& context) {
  const QuantArgs& args = *context.scheme().weight;
  const std::string& name = context.layer().name;
  quant::RangeOptions range;
  if (clip_ == Clip::kNone) return quant::round_to_nearest(context, range);
  const auto error = OutputError::from(context.statistic<Gram>(), context.statistic<ActivationRows>());
  if (!error) {
    context.notes().note("rounding instead of awq", name, "no calibration token reached this layer");
    return quant::round_to_nearest(context, range);
  }
  // Blocks of E[x xᵀ] are worth their cost (a product of g columns per candidate) for groups only.
  constexpr int64_t kLargestBlock = 256;
  const bool by_group = (clip_ == Clip::kGram || clip_ == Clip::kJoint) &&
                        args.granularity == Granularity::kGroup && args.group_size <= kLargestBlock;
  if (!by_group) {
    range.method = quant::RangeOptions::Method::kMse;
    range.importance = error->mean_square();
  }
  SLIM_ASSIGN(Solved solved, quant::round_to_nearest(context, range));
  const at::Tensor weight = context.weight();
  auto& quantized = std::get<Quantized>(solved.weight);
  if (by_group) {
    const auto search = clip_ == Clip::kJoint ? search_joint_ranges : search_group_ranges;
    const quant::Params params = search(weight, args, context.scale_dtype(), *error);
    quantized.codes = quant::encode(weight, params, args);
    quantized.scale = params.scale;
    quantized.zero = params.zero;
  }
  context.notes().metric(name, "loss", mean_loss(weight, quantized, *error));
  return solved;
}

constexpr char kSchema[] = R"json({"type":"object","properties":{
  "grid":{"type":"integer","minimum":1,"maximum":1000,"default":20,
          "description":"ratios from 0 to 1 that are tried, with and without the weight term"},
  "refine":{"type":"integer","minimum":0,"maximum":1000,"default":24,
            "description":"further scales tried around the best of the grid"},
  "weight_term":{"type":"string","enum":["both","on","off"],"default":"both",
                 "description":"divide the scale by the mean relative size of the weights (llm-compressor's duo scaling)"},
  "objective":{"type":"string","enum":["gram","replay"],"default":"gram",
               "description":"the error of the layers' outputs, exact and without running the model; or that of attention or MLP"},
  "rows":{"type":"integer","minimum":1,"maximum":1000000000,"default":128,
          "description":"output rows of each layer that rank the scales; the winner is checked on up to 512"},
  "search_range":{"type":"string","enum":["minmax","mse"],"default":"minmax",
                  "description":"how ranges are found while scales are compared"},
  "clip":{"type":"string","enum":["none","diagonal","gram","joint"],"default":"joint",
          "description":"final ranges: extremes, least error weighted by E[x²], least output error of each group alone, or of each beside the others"},
  "exponents":{"type":"string","enum":["edge","group"],"default":"group",
               "description":"one pair of exponents for all channels, or one for each group of channels"},
  "edges":{"type":"string","enum":["all","norms"],"default":"all",
           "description":"where scales may go: also into v_proj and up_proj, or into norms only"}}})json";
}  // namespace
}  // namespace slim::awq
SLIM_ALGORITHM_PLUGIN("awq", slim::awq::Awq, "Activation-aware weight quantization", slim::awq::kSchema)
