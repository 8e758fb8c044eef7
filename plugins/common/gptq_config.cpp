#include "common/gptq_config.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "common/name_patterns.hpp"
#include "common/stored_layer.hpp"
#include "slim/version.hpp"

namespace slim::formats {
namespace {

using Json = nlohmann::ordered_json;

// ---- writing --------------------------------------------------------------------------------------------------------

struct Group {
  QuantArgs args;
  std::vector<const Layer*> layers;
};

int64_t group_size_of(const QuantArgs& args) {
  return args.granularity == Granularity::kGroup ? args.group_size : -1;
}

/// Layers by their quantization, the largest group first.
std::vector<Group> groups_of(const OutputModel& model) {
  std::vector<Group> groups;
  for (const BlockPlan& block : model.plan->blocks) {
    for (const Layer& layer : block.layers) {
      const auto scheme = model.schemes.find(layer.name);
      if (scheme == model.schemes.end()) continue;
      auto group = std::find_if(groups.begin(), groups.end(),
                                [&](const Group& g) { return g.args == *scheme->second.weight; });
      if (group == groups.end()) group = groups.insert(group, Group{*scheme->second.weight, {}});
      group->layers.push_back(&layer);
    }
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const Group& a, const Group& b) { return a.layers.size() > b.layers.size(); });
  return groups;
}

/// The names by which engines look for a layer: its own, and that of the layer which they merge it into.
std::vector<std::string> names_of(const std::vector<const Layer*>& layers) {
  std::vector<std::string> names;
  std::set<std::string> merged;
  for (const Layer* layer : layers) {
    names.push_back(layer->name);
    const std::string parent = layer->name.substr(0, layer->name.rfind('.') + 1);
    if (layer->role == Role::kQuery || layer->role == Role::kKey || layer->role == Role::kValue)
      merged.insert(parent + "qkv_proj");
    if (layer->role == Role::kGate || layer->role == Role::kUp) merged.insert(parent + "gate_up_proj");
  }
  names.insert(names.end(), merged.begin(), merged.end());
  return names;
}

/// Layers in float that loaders would take for quantized ones, for they are like them: not the head, routers, other
/// towers.
std::vector<const Layer*> skipped_layers(const OutputModel& model) {
  std::set<std::string> stages;
  for (const BlockPlan& block : model.plan->blocks) {
    for (const Layer& layer : block.layers) {
      if (model.schemes.contains(layer.name)) stages.insert(block.stage);
    }
  }
  std::vector<const Layer*> skipped;
  for (const BlockPlan& block : model.plan->blocks) {
    if (!stages.contains(block.stage)) continue;
    for (const Layer& layer : block.layers) {
      const bool special = layer.role == Role::kHead || layer.role == Role::kRouter;
      if (!special && !model.schemes.contains(layer.name)) skipped.push_back(&layer);
    }
  }
  return skipped;
}

/// "-:" for layers in float; "+:" for those of all groups but the first.
Json dynamic_json(const std::vector<Group>& groups, const std::vector<const Layer*>& skipped) {
  std::vector<std::vector<std::string>> names;
  for (const Group& group : groups) names.push_back(names_of(group.layers));
  names.push_back(names_of(skipped));
  const auto patterns = [&](size_t index) {
    std::vector<std::string> others;
    for (size_t i = 0; i < names.size(); ++i) {
      if (i != index) others.insert(others.end(), names[i].begin(), names[i].end());
    }
    return patterns_of(names[index], others);
  };
  Json dynamic = Json::object();
  for (const std::string& pattern : patterns(groups.size())) dynamic["-:" + pattern] = Json::object();
  for (size_t i = 1; i < groups.size(); ++i) {
    const QuantArgs& args = groups[i].args;
    for (const std::string& pattern : patterns(i)) {
      dynamic["+:" + pattern] = {
          {"bits", args.bits}, {"group_size", group_size_of(args)}, {"sym", args.symmetric}};
    }
  }
  return dynamic;
}

/// Ends of the names of all quantized layers, of at least two parts ("mlp.up_proj"), which occur in no name of a layer in float.
std::vector<std::string> quantized_suffixes(const OutputModel& model) {
  std::vector<std::string> floats, suffixes;
  for (const BlockPlan& block : model.plan->blocks) {
    for (const Layer& layer : block.layers) {
      if (!model.schemes.contains(layer.name)) floats.push_back(layer.name);
    }
  }
  const auto in_float = [&](const std::string& suffix) {
    return std::any_of(floats.begin(), floats.end(),
                       [&](const auto& name) { return name.find(suffix) != std::string::npos; });
  };
  for (const auto& [name, scheme] : model.schemes) {
    const auto covers = [&name = name](const std::string& suffix) { return name.ends_with(suffix); };
    if (std::any_of(suffixes.begin(), suffixes.end(), covers)) continue;
    size_t dot = name.rfind('.');
    std::string suffix;
    do {
      dot = dot == std::string::npos || dot == 0 ? std::string::npos : name.rfind('.', dot - 1);
      suffix = dot == std::string::npos ? name : name.substr(dot + 1);
    } while (dot != std::string::npos && in_float(suffix));
    suffixes.push_back(suffix);
  }
  return suffixes;
}

// ---- reading --------------------------------------------------------------------------------------------------------

Status wrong(const std::string& where, const std::string& what) {
  return corrupt("quantization_config." + where, what);
}

/// Overwrites what the object states.
Status read_args(const Json& json, const std::string& where, QuantArgs& args) {
  args.bits = json.value("bits", args.bits);
  if (args.bits != 2 && args.bits != 3 && args.bits != 4 && args.bits != 8) {
    return {Code::kUnsupported, "quantization_config." + where + "bits: slim reads 2, 3, 4 and 8, found " +
                                    std::to_string(args.bits)};
  }
  args.symmetric = json.value("sym", args.symmetric);
  const int64_t size = json.value("group_size", group_size_of(args));
  if (size <= 0 && size != -1)
    return wrong(where + "group_size", "expected a positive number or -1, found " + std::to_string(size));
  args.granularity = size == -1 ? Granularity::kChannel : Granularity::kGroup;
  args.group_size = size > 0 ? size : QuantArgs{}.group_size;
  return {};
}

Status check_pattern(const std::string& key, const std::string& pattern) {
  try {
    (void)std::regex(pattern);
  } catch (const std::regex_error&) {
    return {Code::kUnsupported, "quantization_config.dynamic: slim cannot read the pattern '" + key + "'"};
  }
  return {};
}

}  // namespace

std::string write_gptq_config(const OutputModel& model, int version) {
  const std::vector<Group> groups = groups_of(model);
  const QuantArgs base = groups.empty() ? QuantArgs{} : groups.front().args;
  bool head = false;
  for (const Group& group : groups) {
    for (const Layer* layer : group.layers) head = head || layer->role == Role::kHead;
  }
  const char* format = version == 2 ? "gptq_v2" : "gptq";
  Json json;
  json["quant_method"] = "gptq";
  json["method"] = "gptq";
  json["bits"] = base.bits;
  json["group_size"] = group_size_of(base);
  json["desc_act"] = model.scattered_groups;
  json["sym"] = base.symmetric;
  json["lm_head"] = head;
  json["checkpoint_format"] = format;
  json["format"] = format;
  json["pack_dtype"] = "int32";
  const std::vector<const Layer*> skipped = skipped_layers(model);
  const Json dynamic = dynamic_json(groups, skipped);
  if (!dynamic.empty()) json["dynamic"] = dynamic;
  // transformers knows no "dynamic".
  if (!skipped.empty()) json["modules_in_block_to_quantize"] = Json::array({quantized_suffixes(model)});
  json["meta"] = {{"quantizer", {std::string("slim:") + SLIM_VERSION}}};
  return json.dump();
}

std::vector<std::string> patterns_in_float(const OutputModel& model) {
  std::vector<std::string> quantized;
  for (const Group& group : groups_of(model)) {
    const std::vector<std::string> names = names_of(group.layers);
    quantized.insert(quantized.end(), names.begin(), names.end());
  }
  return patterns_of(names_of(skipped_layers(model)), quantized);
}

std::optional<int> GptqConfig::version(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("quant_method") || json["quant_method"] != "gptq")
    return std::nullopt;
  for (const char* key : {"checkpoint_format", "format"}) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_string()) continue;
    if (*found == "gptq") return 1;
    return *found == "gptq_v2" ? std::optional<int>(2) : std::nullopt;
  }
  return 1;
}

Result<GptqConfig> GptqConfig::parse(std::string_view text) try {
  const Json json = Json::parse(text);
  GptqConfig config;
  for (const char* key : {"bits", "group_size"}) {
    if (!json.contains(key)) return wrong(key, "is missing");
  }
  SLIM_TRY(read_args(json, "", config.base_));
  if (json.value("pack_dtype", "int32") != "int32")
    return Status(Code::kUnsupported, "quantization_config.pack_dtype: slim reads int32 only");
  config.desc_act_ = json.value("desc_act", false);
  const auto in_block = json.find("modules_in_block_to_quantize");
  if (in_block != json.end() && in_block->is_array()) {
    for (const Json& list : *in_block) {
      for (const Json& name : list.is_array() ? list : Json::array({list}))
        if (name.is_string()) config.in_block_.push_back(name.get<std::string>());
    }
  }
  const auto dynamic = json.find("dynamic");
  if (dynamic == json.end() || dynamic->is_null()) return config;
  if (!dynamic->is_object()) return wrong("dynamic", "expected an object");
  for (const auto& [key, overrides] : dynamic->items()) {
    const bool skip = key.starts_with("-:");
    Rule rule{skip || key.starts_with("+:") ? key.substr(2) : key, std::nullopt};
    SLIM_TRY(check_pattern(key, rule.pattern));
    if (!skip) {
      if (!overrides.is_object()) return wrong("dynamic", "'" + key + "' is no object");
      rule.args = config.base_;
      SLIM_TRY(read_args(overrides, "dynamic '" + key + "' ", *rule.args));
    }
    config.rules_.push_back(std::move(rule));
  }
  return config;
} catch (const nlohmann::json::exception& error) {
  return Status(Code::kCorrupt, std::string("quantization_config: ") + error.what());
}

std::vector<std::string> GptqConfig::taken_for_quantized(const OutputModel& found) const {
  std::vector<std::string> names;
  for (const Layer* layer : skipped_layers(found)) {
    const auto rule = std::find_if(rules_.begin(), rules_.end(),
                                   [&](const Rule& r) { return matches_start(r.pattern, layer->name); });
    const bool left_out = rule != rules_.end() && !rule->args;
    const bool listed =
        in_block_.empty() || std::any_of(in_block_.begin(), in_block_.end(),
                                         [&](const auto& end) { return layer->name.ends_with(end); });
    if (!left_out && listed) names.push_back(layer->name);
  }
  return names;
}

Result<QuantArgs> GptqConfig::find(const std::string& module) const {
  for (const Rule& rule : rules_) {
    if (!matches_start(rule.pattern, module)) continue;
    if (!rule.args)
      return corrupt(module, "has quantized tensors, but quantization_config.dynamic leaves it in float");
    return *rule.args;
  }
  return base_;
}

}  // namespace slim::formats
