#include "run/run_plan.h"

#include <algorithm>

#include "plugin/guard.h"
#include "run/name_match.h"

namespace slim {
namespace {

std::string default_format(const Scheme& scheme) { return scheme.name == "w8a8s" ? "ascend" : "compressed-tensors"; }

/// "quant_vit" takes the vision tower out of what the adapter leaves in float.
std::vector<std::string> default_ignore(const ModelPlan& plan, bool quantize_vision) {
  std::vector<std::string> patterns;
  for (const std::string& text : plan.default_ignore) {
    if (!(quantize_vision && text.find("visual") != std::string::npos)) patterns.push_back(text);
  }
  return patterns;
}

/// Decides one layer after another, and remembers what the patterns and policies did.
class Planner {
 public:
  Planner(const RunConfig& config, const Model& model, const Recipe& recipe) : config_(config), model_(model), recipe_(recipe) {}

  Result<RunPlan> run() {
    SLIM_ASSIGN(defaults_, parse_patterns(default_ignore(model_.plan, config_.quant_vit)));
    SLIM_ASSIGN(wanted_, parse_patterns(config_.ignore_layers));
    matched_.assign(wanted_.size(), false);
    for (const BlockPlan& block : model_.plan.blocks) {
      plan_.layers.emplace_back();
      for (const Layer& layer : block.layers) {
        SLIM_ASSIGN(LayerDecision decision, decide(layer));
        plan_.layers.back().push_back(std::move(decision));
      }
    }
    SLIM_TRY(check_patterns());
    SLIM_TRY(check_fused());
    find_replaced();
    list_outputs();
    SLIM_TRY(list_ignore());
    if (plan_.quantized_weights == 0) {
      return Status(Code::kInvalidArgument, "nothing to quantize: every layer is ignored; see `slim plan` and ignore_layers");
    }
    return std::move(plan_);
  }

 private:
  Result<LayerDecision> decide(const Layer& layer) {
    LayerDecision decision;
    decision.reason = float_reason(layer);
    if (!decision.reason.empty()) {
      plan_.float_weights += layer.out * layer.in;
      return decision;
    }
    Scheme scheme = recipe_.scheme;
    SLIM_TRY(fit_group(layer, scheme, decision));
    if (!decision.reason.empty()) return decision;
    SLIM_ASSIGN(decision.outputs, guarded(recipe_.format_id, [&] {
                  return recipe_.format->layout(layer, scheme, model_.weights->dtype());
                }));
    for (const TensorSpec& spec : decision.outputs) plan_.quantized_bits += 8.0 * byte_size(spec).value_or(0);
    plan_.quantized_weights += layer.out * layer.in;
    decision.scheme = std::move(scheme);
    return decision;
  }

  std::string float_reason(const Layer& layer) {
    std::string reason;
    for (size_t i = 0; i < wanted_.size(); ++i) {
      if (!wanted_[i].matches(layer.name)) continue;
      matched_[i] = true;
      reason = "ignore_layers " + wanted_[i].text();
    }
    for (const NamePattern& pattern : defaults_) {
      if (reason.empty() && pattern.matches(layer.name)) reason = "the adapter leaves " + pattern.text() + " in float";
    }
    if (reason.empty() && layer.tied) reason = "tied to the embedding";
    if (reason.empty() && layer.role == Role::kRouter) reason = "router";
    return reason;
  }

  /// Where the group does not divide the width: the stated policy.
  Status fit_group(const Layer& layer, Scheme& scheme, LayerDecision& decision) {
    auto& weight = scheme.weight;
    if (!weight || weight->granularity != Granularity::kGroup || layer.in % weight->group_size == 0) return {};
    const std::string numbers =
        layer.name + " has " + std::to_string(layer.in) + " input channels, which groups of " + std::to_string(weight->group_size) + " do not divide";
    if (config_.indivisible == "error") {
      return {Code::kInvalidArgument, numbers + "; choose another group_size, or group_size_fallback = \"skip\" (stays in float) or "
                                                "\"channel\" (one scale a row)"};
    }
    plan_.indivisible.push_back(numbers);
    if (config_.indivisible == "skip") {
      decision.reason = std::to_string(layer.in) + " channels, group size " + std::to_string(weight->group_size);
      plan_.float_weights += layer.out * layer.in;
    } else {
      weight->granularity = Granularity::kChannel;
    }
    return {};
  }

  Status check_patterns() const {
    for (size_t i = 0; i < wanted_.size(); ++i) {
      if (!matched_[i]) {
        return {Code::kInvalidArgument, "ignore_layers: '" + wanted_[i].text() + "' matches no layer; `slim plan` lists their names"};
      }
    }
    return {};
  }

  Status check_fused() const {
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const FusedGroup& group : block.fused) {
        const Scheme* first = plan_.scheme(block.index, group.layers.front());
        for (const LayerId id : group.layers) {
          const Scheme* scheme = plan_.scheme(block.index, id);
          if ((first == nullptr) == (scheme == nullptr) && (!first || *first == *scheme)) continue;
          return {Code::kInvalidArgument, block.layers[id].name + " and " + block.layers[group.layers.front()].name +
                                              " are merged by serving engines and need one scheme; quantize or ignore both"};
        }
      }
    }
    return {};
  }

  /// A tensor is replaced as soon as one layer in it is quantized; its other layers are then written under their own names.
  void find_replaced() {
    for_layers([&](const Layer& layer, LayerDecision& decision) {
      if (decision.scheme) plan_.replaced.insert(layer.weight.tensor);
    });
    for_layers([&](const Layer& layer, LayerDecision& decision) {
      if (decision.scheme || layer.tied || !plan_.replaced.contains(layer.weight.tensor)) return;
      const Dtype dtype = model_.weights->logical().at(layer.weight.tensor).dtype;
      decision.outputs = {{layer.name + ".weight", dtype, {layer.out, layer.in}}};
    });
  }

  void list_outputs() {
    std::set<std::string> written;
    const auto keep = [&](const std::string& name) {
      if (!plan_.replaced.contains(name) && written.insert(name).second) plan_.outputs.push_back(model_.weights->logical().at(name));
    };
    for (const std::string& name : model_.plan.globals) keep(name);
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const std::string& name : block.params) keep(name);
      for (const Layer& layer : block.layers) {
        const auto& outputs = plan_.layers[block.index][layer.id].outputs;
        plan_.outputs.insert(plan_.outputs.end(), outputs.begin(), outputs.end());
        keep(layer.weight.tensor);
        if (!layer.bias.empty()) keep(layer.bias);
      }
    }
  }

  /// The adapter's patterns where they cover float layers and no quantized one, and the names of all others.
  Status list_ignore() {
    SLIM_ASSIGN(const auto patterns, parse_patterns(model_.plan.default_ignore));
    std::vector<const NamePattern*> usable;
    for (const NamePattern& pattern : patterns) {
      bool covers = false, clean = true;
      for_layers([&](const Layer& layer, const LayerDecision& decision) {
        if (!pattern.matches(layer.name)) return;
        if (decision.scheme) clean = false;
        else covers = true;
      });
      if (covers && clean) usable.push_back(&pattern);
    }
    for (const NamePattern* pattern : usable) plan_.ignore.push_back(pattern->text());
    for_layers([&](const Layer& layer, const LayerDecision& decision) {
      const bool covered = std::any_of(usable.begin(), usable.end(), [&](const auto* p) { return p->matches(layer.name); });
      if (!decision.scheme && !covered) plan_.ignore.push_back(layer.name);
    });
    return {};
  }

  template <class Fn>
  void for_layers(Fn&& fn) {
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const Layer& layer : block.layers) fn(layer, plan_.layers[block.index][layer.id]);
    }
  }

  const RunConfig& config_;
  const Model& model_;
  const Recipe& recipe_;
  RunPlan plan_;
  std::vector<NamePattern> defaults_, wanted_;
  std::vector<bool> matched_;
};

}  // namespace

std::vector<const Scheme*> RunPlan::schemes(int32_t block) const {
  std::vector<const Scheme*> list;
  for (size_t layer = 0; layer < layers[block].size(); ++layer) list.push_back(scheme(block, static_cast<LayerId>(layer)));
  return list;
}

bool RunPlan::quantizes(int32_t block) const {
  return std::any_of(layers[block].begin(), layers[block].end(), [](const auto& decision) { return decision.scheme.has_value(); });
}

Algorithm* Recipe::solver() const {
  for (auto it = algorithms.rbegin(); it != algorithms.rend(); ++it) {
    if ((*it)->solves()) return it->get();
  }
  return nullptr;
}

std::string Recipe::solver_id() const {
  for (size_t i = algorithms.size(); i-- > 0;) {
    if (algorithms[i]->solves()) return algorithm_ids[i];
  }
  return "rtn";
}

Result<Recipe> Recipe::make(const RunConfig& config, PluginRegistry& registry) {
  Recipe recipe;
  if (config.plugins.empty()) {
    return Status(Code::kInvalidArgument, "no algorithm chosen; pass --plugin (see `slim plugins list`)");
  }
  for (const std::string& name : config.plugins) {
    SLIM_ASSIGN(const PluginInfo info, registry.find(SLIM_ALGORITHM, name));
    SLIM_ASSIGN(Owned<Algorithm> algorithm, registry.algorithm(name));
    const auto raw = config.plugin_options.find(info.id);
    SLIM_ASSIGN(const Options options,
                registry.checked_options(SLIM_ALGORITHM, name, raw == config.plugin_options.end() ? Options{} : raw->second));
    SLIM_TRY(guarded(info.id, [&] { return algorithm->setup(options); }));
    recipe.algorithm_ids.push_back(info.id);
    recipe.algorithms.push_back(std::move(algorithm));
  }
  const Algorithm& last = recipe.solver() ? *recipe.solver() : *recipe.algorithms.back();
  const std::string name = config.scheme.empty() ? std::string(last.default_scheme()) : config.scheme;
  SLIM_ASSIGN(recipe.scheme, scheme_from_name(name, config.group_size));
  for (size_t i = 0; i < recipe.algorithms.size(); ++i) {
    SLIM_TRY(recipe.algorithms[i]->accepts(recipe.scheme).in(recipe.algorithm_ids[i]));
  }
  recipe.format_id = config.format.empty() ? default_format(recipe.scheme) : config.format;
  SLIM_ASSIGN(recipe.format, registry.format(recipe.format_id));
  return recipe;
}

Result<RunPlan> make_run_plan(const RunConfig& config, const Model& model, const Recipe& recipe) {
  if (model.weights->quantized()) {
    return Status(Code::kInvalidArgument, config.model + " is already quantized; give the original checkpoint");
  }
  return Planner(config, model, recipe).run();
}

}  // namespace slim
