#include "plan/run_plan.h"

#include <algorithm>

#include "checkpoint/cast.h"
#include "engines/engine.h"
#include "plugin/guard.h"
#include "slim/statistic.hpp"
#include "statistics/statistic_set.h"
#include "util/nearest.h"

namespace slim {
namespace {

constexpr std::string_view kVisionStage = "vision";

/// True if the pattern matches layers of the vision tower, and of nothing else.
bool covers_vision_alone(const NamePattern& pattern, const ModelPlan& plan) {
  bool covers = false;
  for (const BlockPlan& block : plan.blocks) {
    for (const Layer& layer : block.layers) {
      if (!pattern.matches(layer.name)) continue;
      if (block.stage != kVisionStage) return false;
      covers = true;
    }
  }
  return covers;
}

/// The patterns that the adapter leaves in float; `quantize_vision` takes the vision tower out of them.
Result<std::vector<NamePattern>> default_ignore(const ModelPlan& plan, bool quantize_vision) {
  SLIM_ASSIGN(std::vector<NamePattern> patterns, parse_patterns(plan.default_ignore));
  if (!quantize_vision) return patterns;
  const bool has_tower = std::any_of(plan.blocks.begin(), plan.blocks.end(),
                                     [](const BlockPlan& block) { return block.stage == kVisionStage; });
  if (!has_tower)
    return Status(Code::kInvalidArgument, "quant_vit: the model has no vision tower; leave it out");
  std::erase_if(patterns, [&](const NamePattern& pattern) { return covers_vision_alone(pattern, plan); });
  return patterns;
}

/// Decides one layer after another, and remembers what the patterns and policies did.
class Planner {
 public:
  Planner(const RunConfig& config, const ModelFacts& model, const Recipe& recipe)
      : config_(config), model_(model), recipe_(recipe) {}

  Result<RunPlan> run() {
    SLIM_ASSIGN(defaults_, default_ignore(model_.plan, config_.quant_vit));
    SLIM_ASSIGN(wanted_, parse_patterns(config_.ignore_layers));
    matched_.assign(wanted_.size(), false);
    rules_.assign(recipe_.rules.size(), {});
    choose_dtype();
    find_common_group();
    for (const BlockPlan& block : model_.plan.blocks) {
      plan_.layers.emplace_back();
      for (const Layer& layer : block.layers) {
        SLIM_ASSIGN(LayerDecision decision, decide(layer));
        plan_.layers.back().push_back(std::move(decision));
      }
    }
    SLIM_TRY(check_patterns());
    SLIM_TRY(check_rules());
    SLIM_TRY(check_fused());
    find_replaced();
    SLIM_TRY(list_outputs());
    SLIM_TRY(list_ignore());
    if (plan_.quantized_weights == 0 && !plan_.kv_cache) {
      return Status(Code::kInvalidArgument,
                    "nothing to quantize: every layer is ignored; see `slim plan` and ignore_layers");
    }
    SLIM_TRY(check_format());
    return std::move(plan_);
  }

 private:
  Result<LayerDecision> decide(const Layer& layer) {
    LayerDecision decision;
    int rule = -1;
    const int part = recipe_.part_of(layer.name, rule);
    decision.reason = float_reason(layer, rule, part);
    if (rule >= 0) rules_[static_cast<size_t>(rule)].count(decision.reason, part);
    note_shadowed(layer.name, rule);
    if (!decision.reason.empty()) {
      plan_.float_weights += layer.out * layer.in;
      return decision;
    }
    decision.part = static_cast<size_t>(part);
    Scheme scheme = recipe_.parts[decision.part].scheme;
    SLIM_TRY(fit_group(layer, rule, scheme, decision));
    if (!decision.reason.empty()) return decision;
    const RecipePart& chain = recipe_.parts[decision.part];
    auto outputs = recipe_.layout(layer, scheme, chain, plan_.dtype);
    if (!outputs.ok()) return refused(outputs.status(), layer, scheme, chain);
    decision.outputs = *std::move(outputs);
    for (const TensorSpec& spec : decision.outputs) plan_.quantized_bits += 8.0 * byte_size(spec).value_or(0);
    plan_.quantized_weights += layer.out * layer.in;
    ++plan_.layers_of_scheme[scheme.name];
    decision.scheme = std::move(scheme);
    return decision;
  }

  /// What became of the layers that a rule matches.
  struct RuleUse {
    bool decides = false;      ///< a layer is quantized, or left in float, because of it
    bool shadowed = false;     ///< an earlier rule took a layer
    std::string float_reason;  ///< why a layer stays in float all the same
    void count(const std::string& reason, int part) {
      if (reason.empty() || part == RecipeRule::kFloat)
        decides = true;
      else
        float_reason = reason;
    }
  };
  void note_shadowed(const std::string& layer, int rule) {
    for (size_t i = static_cast<size_t>(rule + 1); rule >= 0 && i < rules_.size(); ++i) {
      if (recipe_.rules[i].matches(layer)) rules_[i].shadowed = true;
    }
  }

  std::string float_reason(const Layer& layer, int rule, int part) {
    std::string reason;
    for (size_t i = 0; i < wanted_.size(); ++i) {
      if (!wanted_[i].matches(layer.name)) continue;
      matched_[i] = true;
      reason = "ignore_layers " + wanted_[i].text();
    }
    for (const NamePattern& pattern : defaults_) {
      if (reason.empty() && pattern.matches(layer.name))
        reason = "the adapter leaves " + pattern.text() + " in float";
    }
    if (reason.empty() && layer.tied) reason = "tied to the embedding";
    if (reason.empty() && layer.role == Role::kRouter) reason = "router";
    if (reason.empty() && part == RecipeRule::kFloat)
      reason = "rule '" + recipe_.rules[static_cast<size_t>(rule)].rule.text() + "'";
    return reason;
  }

  /// Sizes that engines have kernels for, the largest first.
  static constexpr int64_t kUsualGroups[] = {128, 64, 32};

  /// The widths of layers that are quantized in groups of a size that nobody asked for.
  std::set<int64_t> widths_in_default_groups() {
    std::set<int64_t> widths;
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const Layer& layer : block.layers) {
        int rule = -1;
        const int part = recipe_.part_of(layer.name, rule);
        if (!float_reason(layer, rule, part).empty() || asked_group(rule)) continue;
        const auto& weight = recipe_.parts[static_cast<size_t>(part)].scheme.weight;
        if (weight && weight->granularity == Granularity::kGroup) widths.insert(layer.in);
      }
    }
    return widths;
  }
  /// With "auto": the largest usual group that divides every width which any of them divides.
  void find_common_group() {
    const bool groups = std::any_of(recipe_.parts.begin(), recipe_.parts.end(), [](const RecipePart& part) {
      return part.scheme.weight && part.scheme.weight->granularity == Granularity::kGroup;
    });
    if (config_.indivisible != "auto" || config_.group_size != 0 || !groups) return;
    std::set<int64_t> widths = widths_in_default_groups();
    std::erase_if(widths, [](int64_t width) { return width % *std::rbegin(kUsualGroups) != 0; });
    common_group_ = widths.empty() ? 0 : largest_group(widths);
  }
  static int64_t largest_group(const std::set<int64_t>& widths) {
    for (const int64_t group : kUsualGroups) {
      if (std::all_of(widths.begin(), widths.end(), [&](int64_t width) { return width % group == 0; }))
        return group;
    }
    return 0;
  }
  bool asked_group(int rule) const {
    if (rule >= 0 && recipe_.rules[static_cast<size_t>(rule)].rule.group_size != 0) return true;
    return config_.group_size != 0;
  }

  /// Where the group does not divide the width: the stated policy.
  Status fit_group(const Layer& layer, int rule, Scheme& scheme, LayerDecision& decision) {
    auto& weight = scheme.weight;
    if (!weight || weight->granularity != Granularity::kGroup) return {};
    const bool asked = asked_group(rule);
    if (!asked && common_group_ > 0 && common_group_ < weight->group_size) {
      plan_.common_group = weight->group_size = common_group_;
    }
    if (layer.in % weight->group_size == 0) return {};
    if (config_.indivisible == "error" || (config_.indivisible == "auto" && asked))
      return refuse_group(layer, weight->group_size);
    plan_.indivisible.push_back({layer.name, layer.in, weight->group_size});
    if (config_.indivisible == "channel") {
      weight->granularity = Granularity::kChannel;
      return {};
    }
    decision.reason =
        std::to_string(layer.in) + " channels, group size " + std::to_string(weight->group_size);
    plan_.float_weights += layer.out * layer.in;
    return {};
  }

  Status refuse_group(const Layer& layer, int64_t group_size) {
    std::set<int64_t> widths;
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const Layer& other : block.layers) {
        int rule = -1;
        const int part = recipe_.part_of(other.name, rule);
        if (float_reason(other, rule, part).empty()) widths.insert(other.in);
      }
    }
    const int64_t fits = largest_group(widths);
    return {Code::kInvalidArgument,
            layer.name + " has " + std::to_string(layer.in) + " input channels, which groups of " +
                std::to_string(group_size) + " do not divide; " +
                (fits > 0 ? "groups of " + std::to_string(fits) + " divide every layer: --group-size " +
                                std::to_string(fits) + "; or "
                          : "choose another group_size, or ") +
                "group_size_fallback = \"skip\" (stays in float) or \"channel\" (one scale a row)"};
  }

  /// True for names of modules that no algorithm touches (embeddings, norms): other tools' lists have them. Those outside of blocks go by their last
  /// part too, for classes of transformers put other prefixes there than files.
  bool names_float_module(const NamePattern& pattern) const {
    const auto module = [](const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); };
    const auto last_part = [](const std::string& name) { return name.substr(name.rfind('.') + 1); };
    const auto matches = [&](const std::string& tensor) { return pattern.matches(module(tensor)); };
    const auto ends_alike = [&](const std::string& tensor) {
      return last_part(pattern.text()) == last_part(module(tensor));
    };
    const auto& plan = model_.plan;
    return std::ranges::any_of(plan.globals, matches) || std::ranges::any_of(plan.globals, ends_alike) ||
           std::ranges::any_of(plan.beside, matches) ||
           std::ranges::any_of(plan.blocks, [&](const BlockPlan& block) {
             return std::ranges::any_of(block.params, matches);
           });
  }

  Status check_patterns() const {
    for (size_t i = 0; i < wanted_.size(); ++i) {
      if (!matched_[i] && !names_float_module(wanted_[i])) {
        return {Code::kInvalidArgument,
                "ignore_layers: '" + wanted_[i].text() + "' matches no layer; `slim plan` lists their names"};
      }
    }
    return {};
  }

  Status check_rules() const {
    for (size_t i = 0; i < rules_.size(); ++i) {
      const RuleUse& use = rules_[i];
      if (use.decides) continue;
      std::string why = "matches no layer; `slim plan` lists their names";
      if (use.shadowed) why = "decides nothing: earlier rules take every layer that it matches";
      if (!use.float_reason.empty())
        why = "decides nothing: what it matches stays in float (" + use.float_reason + ")";
      return {Code::kInvalidArgument, "rule '" + recipe_.rules[i].rule.text() + "' " + why};
    }
    return {};
  }

  Status check_fused() const {
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const FusedGroup& group : block.fused) SLIM_TRY(check_one_scheme(block, group.layers));
      SLIM_TRY(check_one_scheme(block, expert_layers(block)));
    }
    return {};
  }

  /// Engines keep the weights of all experts in one tensor.
  static std::vector<LayerId> expert_layers(const BlockPlan& block) {
    std::vector<LayerId> layers;
    for (const Layer& layer : block.layers) {
      if (layer.expert >= 0) layers.push_back(layer.id);
    }
    return layers;
  }

  Status check_one_scheme(const BlockPlan& block, const std::vector<LayerId>& layers) const {
    const Scheme* first = layers.empty() ? nullptr : plan_.scheme(block.index, layers.front());
    for (const LayerId id : layers) {
      const Scheme* scheme = plan_.scheme(block.index, id);
      if ((first == nullptr) == (scheme == nullptr) && (!first || *first == *scheme)) continue;
      return {Code::kInvalidArgument, block.layers[id].name + " and " + block.layers[layers.front()].name +
                                          " are merged by serving engines and need one scheme, found " +
                                          scheme_text(scheme) + " and " + scheme_text(first) +
                                          "; give both the same, or ignore both"};
    }
    return {};
  }

  static std::string scheme_text(const Scheme* scheme) { return scheme ? scheme->name : "float"; }

  /// A tensor is replaced as soon as one layer in it is quantized; its other layers are then written under their own names.
  void find_replaced() {
    for_layers([&](const Layer& layer, LayerDecision& decision) {
      if (decision.scheme) plan_.replaced.insert(layer.weight.tensor);
    });
    for_layers([&](const Layer& layer, LayerDecision& decision) {
      if (decision.scheme || layer.tied || !plan_.replaced.contains(layer.weight.tensor)) return;
      const Dtype dtype = kept_dtype(model_.tensors.at(layer.weight.tensor).dtype);
      decision.outputs = {{layer.name + ".weight", dtype, {layer.out, layer.in}}};
    });
  }

  /// A checkpoint in float32 whose config.json says 16 bits (DeepSpeed's zero_to_fp32 writes such) is what engines load in 16 bits.
  void choose_dtype() {
    plan_.dtype = model_.dtype;
    if (const auto asked = dtype_of_key(config_.output_dtype)) {
      plan_.dtype = *asked;
      cast_all_ = true;
    } else if (config_.output_dtype == "auto" && model_.dtype == at::kFloat &&
               model_.declared.value_or(at::kFloat) != at::kFloat) {
      plan_.dtype = *model_.declared;
    }
  }

  /// The dtype in which a tensor that stays in float is written. What is stored wider or narrower than the model on purpose stays so
  /// unless a dtype was asked for.
  Dtype kept_dtype(Dtype stored) {
    const bool in_float =
        stored == Dtype::kF16 || stored == Dtype::kBF16 || stored == Dtype::kF32 || stored == Dtype::kF64;
    const bool main = to_scalar_type(stored) == model_.dtype;
    if (!in_float || !(main || cast_all_) || to_scalar_type(stored) == plan_.dtype) return stored;
    plan_.cast = true;
    return *from_scalar_type(plan_.dtype);
  }
  TensorSpec kept(TensorSpec spec) {
    spec.dtype = kept_dtype(spec.dtype);
    return spec;
  }

  Status list_outputs() {
    std::set<std::string> written;
    const auto keep = [&](const std::string& name) {
      if (!plan_.replaced.contains(name) && written.insert(name).second)
        plan_.outputs.push_back(kept(model_.tensors.at(name)));
    };
    for (const std::string& name : model_.plan.globals) keep(name);
    for (const std::string& name : model_.plan.beside) keep(name);
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const std::string& name : block.params) keep(name);
      for (const Layer& layer : block.layers) {
        const auto& outputs = plan_.layers[block.index][layer.id].outputs;
        plan_.outputs.insert(plan_.outputs.end(), outputs.begin(), outputs.end());
        keep(layer.weight.tensor);
        if (!layer.bias.empty()) keep(layer.bias);
      }
      if (config_.kv_cache != "none") SLIM_TRY(list_cache_scales(block));
    }
    if (config_.kv_cache == "none" || plan_.kv_cache) return {};
    return {Code::kUnsupported, "kv_cache = " + config_.kv_cache + ": adapter " + model_.adapter_id +
                                    " names no attention whose keys and values are cached"};
  }

  Status list_cache_scales(const BlockPlan& block) {
    for (const CacheSite& site : block.caches) {
      SLIM_ASSIGN(const auto specs, guarded(recipe_.format_id,
                                            [&] { return recipe_.format->cache_layout(site, plan_.dtype); }));
      plan_.outputs.insert(plan_.outputs.end(), specs.begin(), specs.end());
      plan_.kv_cache = true;
    }
    return {};
  }

  /// A format's refusal of a layer, with the formats that would take it.
  Status refused(const Status& status, const Layer& layer, const Scheme& scheme,
                 const RecipePart& part) const {
    if (status.code() != Code::kUnsupported) return status;
    const auto others = recipe_.formats_that_hold(layer, scheme, part, plan_.dtype);
    return {status.code(), status.message() + (others.empty() ? "; no other format can"
                                                              : "; choose --format " + join(others, " or "))};
  }

  /// Formats may refuse a mixture of schemes each of which they hold.
  Status check_format() const {
    const OutputModel output = describe_output(model_, plan_);
    return guarded(recipe_.format_id, [&] { return recipe_.format->quantization_config(output); }).status();
  }

  /// The adapter's patterns where they cover float layers and no quantized one, and the names of all others.
  Status list_ignore() {
    SLIM_ASSIGN(const auto patterns, parse_patterns(model_.plan.default_ignore));
    std::vector<const NamePattern*> usable;
    for (const NamePattern& pattern : patterns) {
      bool covers = false, clean = true;
      for_layers([&](const Layer& layer, const LayerDecision& decision) {
        if (!pattern.matches(layer.name)) return;
        if (decision.scheme)
          clean = false;
        else
          covers = true;
      });
      if (covers && clean) usable.push_back(&pattern);
    }
    for (const NamePattern* pattern : usable) plan_.ignore.push_back(pattern->text());
    for_layers([&](const Layer& layer, const LayerDecision& decision) {
      const bool covered =
          std::any_of(usable.begin(), usable.end(), [&](const auto* p) { return p->matches(layer.name); });
      if (!decision.scheme && !covered) plan_.ignore.push_back(layer.name);
    });
    list_beside();
    return {};
  }

  /// Matrices beside the model (score heads, other towers) are linear layers for engines, which must not look for their codes.
  void list_beside() {
    constexpr std::string_view kWeight = ".weight";
    for (const std::string& name : model_.plan.beside) {
      if (name.ends_with(kWeight) && model_.tensors.at(name).shape.size() == 2)
        plan_.ignore.push_back(name.substr(0, name.size() - kWeight.size()));
    }
  }

  template <class Fn>
  void for_layers(Fn&& fn) {
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const Layer& layer : block.layers) fn(layer, plan_.layers[block.index][layer.id]);
    }
  }

  const RunConfig& config_;
  const ModelFacts& model_;
  const Recipe& recipe_;
  RunPlan plan_;
  std::vector<NamePattern> defaults_, wanted_;
  std::vector<bool> matched_;
  std::vector<RuleUse> rules_;
  bool cast_all_ = false;     ///< a dtype was asked for: it holds for every float tensor
  int64_t common_group_ = 0;  ///< with "auto"; 0: none
};

}  // namespace

std::string output_dtype_text(const RunConfig& config, const RunPlan& plan) {
  const auto key = [](at::ScalarType dtype) { return std::string(dtype_key(dtype)); };
  if (plan.cast)
    return "float tensors of the output are cast to " + key(plan.dtype) + ", " +
           (config.output_dtype == "auto" ? "which config.json names" : "as asked") + "\n";
  if (plan.dtype != at::kFloat) return "";
  return "float tensors of the output stay in float32, twice the size of 16 bits; --output-dtype bfloat16 "
         "casts them\n";
}

std::string group_size_text(const RunConfig& config, const RunPlan& plan) {
  std::string text;
  if (plan.common_group > 0) {
    text = "groups of " + std::to_string(plan.common_group) +
           ", the largest that engines have and that divide every layer\n";
  }
  std::map<std::pair<int64_t, int64_t>, int64_t> layers;
  for (const IndivisibleLayer& layer : plan.indivisible) ++layers[{layer.in, layer.group_size}];
  for (const auto& [numbers, count] : layers) {
    text += std::to_string(count) + (count == 1 ? " layer" : " layers") + " of " +
            std::to_string(numbers.first) + " channels, which groups of " + std::to_string(numbers.second) +
            " do not divide: " + (config.indivisible == "channel" ? "one scale a row" : "stay in float") +
            "\n";
  }
  return text;
}

std::vector<const Scheme*> RunPlan::schemes(int32_t block, size_t part) const {
  std::vector<const Scheme*> list;
  for (const LayerDecision& decision : layers[block])
    list.push_back(decision.scheme && decision.part == part ? &*decision.scheme : nullptr);
  return list;
}

bool RunPlan::quantizes(int32_t block) const {
  return std::any_of(layers[block].begin(), layers[block].end(),
                     [](const auto& decision) { return decision.scheme.has_value(); });
}

ModelFacts facts_of(const Model& model) {
  return {model.plan, model.weights->logical(), model.weights->dtype(), model.adapter_id,
          declared_dtype(model.weights->checkpoint().config_json())};
}

OutputModel describe_output(const ModelFacts& model, const RunPlan& plan) {
  OutputModel output;
  output.plan = &model.plan;
  output.ignore = plan.ignore;
  output.dtype = plan.dtype;
  output.kv_cache = plan.kv_cache;
  for (const TensorSpec& spec : plan.outputs) output.tensors[spec.name] = spec;
  for (const BlockPlan& block : model.plan.blocks) {
    for (const Layer& layer : block.layers) {
      if (const Scheme* scheme = plan.scheme(block.index, layer.id)) output.schemes[layer.name] = *scheme;
    }
  }
  return output;
}

Result<RunPlan> make_run_plan(const RunConfig& config, const ModelFacts& model, const Recipe& recipe) {
  return Planner(config, model, recipe).run();
}

Result<std::vector<OutputPlan>> make_recipes(const RunConfig& config, PluginRegistry& registry) {
  SLIM_ASSIGN(std::vector<RunConfig> configs, output_configs(config));
  std::vector<OutputPlan> outputs;
  for (RunConfig& one : configs) {
    OutputPlan output{std::move(one), {}, {}};
    auto recipe = Recipe::make(output.config, registry);
    if (!recipe.ok())
      return configs.size() == 1 ? recipe.status() : recipe.status().in("output " + output.config.output);
    output.recipe = *std::move(recipe);
    outputs.push_back(std::move(output));
  }
  return outputs;
}

namespace {

/// The output as engines will find it.
ServedCheckpoint served_checkpoint(const OutputPlan& output, const Model& model) {
  ServedCheckpoint served;
  served.plan = &model.plan;
  served.schemes = describe_output(facts_of(model), output.plan).schemes;
  served.format_id = output.recipe.format_id;
  served.dtype = output.plan.dtype;
  for (const RecipePart& part : output.recipe.parts) {
    const Algorithm* solver = part.solver();
    if (solver && solver->scatters_groups(part.scheme)) served.desc_act = true;
  }
  read_heads(model.weights->checkpoint().config_json(), served);
  return served;
}

Status check_engine(const OutputPlan& output, const Model& model) {
  const RunConfig& config = output.config;
  if (config.engine.empty() && config.tensor_parallel == 1) return {};
  if (config.engine.empty())
    return {Code::kInvalidArgument, "output.tensor_parallel (--tp) needs output.engine (--engine)"};
  SLIM_ASSIGN(const auto problems,
              engine_problems(served_checkpoint(output, model), config.engine, config.tensor_parallel));
  return problems.empty() ? Status{} : Status(Code::kUnsupported, join(problems, "; "));
}

Status plan_output(OutputPlan& output, const Model& model) {
  SLIM_ASSIGN(output.plan, make_run_plan(output.config, facts_of(model), output.recipe));
  return check_engine(output, model);
}

}  // namespace

Status make_run_plans(std::vector<OutputPlan>& outputs, const Model& model) {
  for (OutputPlan& output : outputs) {
    Status status = plan_output(output, model);
    if (!status.ok())
      return outputs.size() == 1 ? status : std::move(status).in("output " + output.config.output);
  }
  return {};
}

void observe(const OutputPlan& output, const BlockPlan& block, StatisticSet& statistics) {
  for (size_t part = 0; part < output.recipe.parts.size(); ++part) {
    const auto schemes = output.plan.schemes(block.index, part);
    const bool any =
        std::any_of(schemes.begin(), schemes.end(), [](const Scheme* scheme) { return scheme != nullptr; });
    if (!any) continue;
    for (const auto& algorithm : output.recipe.parts[part].algorithms)
      algorithm->observe(block, schemes, statistics);
  }
  if (!output.plan.kv_cache) return;
  for (const CacheSite& site : block.caches) {
    for (const PortId port : {site.key, site.value})
      statistics.want<ChannelMoments>(port, block.ports.at(port).features);
  }
}

}  // namespace slim
