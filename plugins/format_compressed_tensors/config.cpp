#include "config.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "common/name_patterns.hpp"
#include "common/stored_layer.hpp"

namespace slim::compressed_tensors {
namespace {

using Json = nlohmann::ordered_json;

Status unsupported(const Scheme& scheme, const std::string& why) {
  return {Code::kUnsupported, "compressed-tensors cannot store scheme " + scheme.name + ": " + why};
}

// ---- writing --------------------------------------------------------------------------------------------------------

const char* strategy_name(Granularity granularity) {
  switch (granularity) {
    case Granularity::kTensor:
      return "tensor";
    case Granularity::kChannel:
      return "channel";
    case Granularity::kGroup:
      return "group";
    case Granularity::kBlock:
      return "block";
    case Granularity::kToken:
      return "token";
  }
  return "";
}

Json args_json(const QuantArgs& args) {
  const bool grouped = args.granularity == Granularity::kGroup, block = args.granularity == Granularity::kBlock;
  Json json;
  json["num_bits"] = args.bits;
  json["type"] = args.type == NumberType::kInt ? "int" : "float";
  json["symmetric"] = args.symmetric;
  json["strategy"] = strategy_name(args.granularity);
  json["group_size"] = grouped ? Json(args.group_size) : Json(nullptr);
  json["dynamic"] = args.dynamic;
  json["actorder"] = nullptr;
  json["block_structure"] = block ? Json{args.block_rows, args.block_columns} : Json(nullptr);
  json["observer"] = args.dynamic ? Json(nullptr) : Json("memoryless_minmax");
  json["observer_kwargs"] = Json::object();
  json["scale_dtype"] = nullptr;
  json["zp_dtype"] = args.symmetric ? Json(nullptr) : Json("torch.int8");
  return json;
}

struct Group {
  const Scheme* scheme = nullptr;
  Storage storage = Storage::kPacked;
  std::vector<std::string> layers;
};

/// Layers by how they are stored; those that are only pruned are a group too.
Result<std::vector<Group>> groups_of(const std::map<std::string, Scheme>& schemes) {
  std::vector<Group> groups;
  for (const auto& [name, scheme] : schemes) {
    auto group = std::find_if(groups.begin(), groups.end(), [&scheme = scheme](const Group& g) {
      return g.scheme->weight == scheme.weight && g.scheme->input == scheme.input;
    });
    if (group == groups.end()) {
      SLIM_ASSIGN(const Storage storage, storage_of(scheme));
      group = groups.insert(group, Group{&scheme, storage, {}});
    }
    group->layers.push_back(name);
  }
  return groups;
}

/// "re:" patterns that cover the layers of one group, and none of another.
std::vector<std::string> targets_of(const Group& group, const std::vector<Group>& groups) {
  std::vector<std::string> others;
  for (const Group& other : groups) {
    if (&other != &group) others.insert(others.end(), other.layers.begin(), other.layers.end());
  }
  std::vector<std::string> targets = formats::patterns_of(group.layers, others);
  for (std::string& target : targets) target = "re:" + target;
  return targets;
}

Json group_json(const Group& group, std::vector<std::string> targets) {
  Json json;
  json["targets"] = std::move(targets);
  json["format"] = storage_name(group.storage);
  json["weights"] = args_json(*group.scheme->weight);
  json["input_activations"] = group.scheme->input ? args_json(*group.scheme->input) : Json(nullptr);
  json["output_activations"] = nullptr;
  return json;
}

/// FP8 keys and values with one scale each.
Json cache_json() {
  QuantArgs args;
  args.type = NumberType::kFloat;
  args.bits = 8;
  args.granularity = Granularity::kTensor;
  return args_json(args);
}

}  // namespace

std::string_view storage_name(Storage storage) {
  switch (storage) {
    case Storage::kPacked:
      return "pack-quantized";
    case Storage::kInt:
      return "int-quantized";
    case Storage::kFloat:
      return "float-quantized";
    case Storage::kDense:
      return "dense";
  }
  return "";
}

Result<Storage> storage_of(const Scheme& scheme) {
  if (!scheme.weight) {
    if (scheme.sparsity && !scheme.input) return Storage::kDense;
    return unsupported(scheme, "it quantizes no weight");
  }
  const QuantArgs& weight = *scheme.weight;
  const bool whole = weight.granularity == Granularity::kTensor || weight.granularity == Granularity::kChannel;
  if (weight.type == NumberType::kFloat) {
    if (!whole && weight.granularity != Granularity::kBlock)
      return unsupported(scheme, "FP8 weights have scales per tensor, channel or block");
    return Storage::kFloat;
  }
  if (!scheme.input) {
    if (weight.granularity == Granularity::kChannel || weight.granularity == Granularity::kGroup)
      return Storage::kPacked;
    return unsupported(scheme, "packed integer weights have scales per channel or group");
  }
  if (weight.bits != 8 || !weight.symmetric || !whole) {
    return unsupported(scheme,
                       "with quantized activations, integer weights are 8-bit and symmetric, per channel or tensor");
  }
  return Storage::kInt;
}

Result<std::string> write_config(const OutputModel& model) {
  SLIM_ASSIGN(const std::vector<Group> groups, groups_of(model.schemes));
  std::vector<const Group*> quantized;
  std::vector<std::string> ignore = model.ignore;
  for (const Group& group : groups) {
    if (group.storage != Storage::kDense) {
      quantized.push_back(&group);
    } else if (groups.size() > 1) {
      const auto pruned = targets_of(group, groups);
      ignore.insert(ignore.end(), pruned.begin(), pruned.end());
    }
  }
  if (quantized.empty() && !model.kv_cache) return std::string();

  Json config;
  const bool one_storage =
      std::all_of(quantized.begin(), quantized.end(), [&](auto* g) { return g->storage == quantized[0]->storage; });
  const Storage first = quantized.empty() ? Storage::kDense : quantized[0]->storage;
  config["quant_method"] = "compressed-tensors";
  config["format"] = one_storage ? storage_name(first) : "mixed-precision";
  config["quantization_status"] = "compressed";
  config["config_groups"] = Json::object();
  for (size_t i = 0; i < quantized.size(); ++i) {
    const auto targets = quantized.size() == 1 ? std::vector<std::string>{"Linear"} : targets_of(*quantized[i], groups);
    config["config_groups"]["group_" + std::to_string(i)] = group_json(*quantized[i], targets);
  }
  config["ignore"] = ignore;
  config["kv_cache_scheme"] = model.kv_cache ? cache_json() : Json(nullptr);
  config["global_compression_ratio"] = nullptr;
  config["sparsity_config"] = Json::object();
  config["transform_config"] = Json::object();
  config["version"] = "0.19.0";
  return config.dump();
}

// ---- reading --------------------------------------------------------------------------------------------------------

namespace {

Status corrupt(const std::string& where, const std::string& what) {
  return {Code::kCorrupt, "quantization_config." + where + ": " + what};
}

std::optional<Granularity> granularity_of(const std::string& strategy) {
  for (const Granularity g :
       {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup, Granularity::kBlock, Granularity::kToken}) {
    if (strategy == strategy_name(g)) return g;
  }
  return std::nullopt;
}

Status read_block(const Json& json, const std::string& where, QuantArgs& args) {
  const auto block = json.find("block_structure");
  const bool pair = block != json.end() && block->is_array() && block->size() == 2 && (*block)[0].is_number_integer() &&
                    (*block)[1].is_number_integer();
  if (!pair) return corrupt(where + ".block_structure", "expected two integers");
  args.block_rows = (*block)[0].get<int64_t>();
  args.block_columns = (*block)[1].get<int64_t>();
  if (args.block_rows <= 0 || args.block_columns <= 0)
    return corrupt(where + ".block_structure", "expected positive integers");
  return {};
}

/// Without a strategy, the group size tells: none means tensor, -1 channel.
Result<Granularity> read_granularity(const Json& json, const std::string& where, const Json& group_size) {
  const auto strategy = json.find("strategy");
  if (strategy == json.end() || strategy->is_null()) {
    if (group_size.is_null()) return Granularity::kTensor;
    return group_size.get<int64_t>() == -1 ? Granularity::kChannel : Granularity::kGroup;
  }
  if (!strategy->is_string()) return corrupt(where + ".strategy", "expected a string");
  if (const auto known = granularity_of(strategy->get<std::string>())) return *known;
  return Status(Code::kUnsupported, "quantization_config." + where + ".strategy: slim does not read '" +
                                        strategy->get<std::string>() + "'");
}

Result<QuantArgs> read_args(const Json& json, const std::string& where) {
  if (!json.is_object()) return corrupt(where, "expected an object");
  QuantArgs args;
  const std::string type = json.value("type", "int");
  if (type != "int" && type != "float")
    return corrupt(where + ".type", "expected \"int\" or \"float\", found \"" + type + "\"");
  args.type = type == "int" ? NumberType::kInt : NumberType::kFloat;
  args.bits = json.value("num_bits", 8);
  if (args.bits < 2 || args.bits > 8 || (args.type == NumberType::kFloat && args.bits != 8)) {
    return Status(Code::kUnsupported, "quantization_config." + where + ": slim does not read " + type + " codes of " +
                                          std::to_string(args.bits) + " bits");
  }
  args.symmetric = json.value("symmetric", true);
  const auto size = json.find("group_size");
  const Json group_size = size == json.end() ? Json(nullptr) : *size;
  if (!group_size.is_null() && !group_size.is_number_integer())
    return corrupt(where + ".group_size", "expected an integer or null");
  SLIM_ASSIGN(args.granularity, read_granularity(json, where, group_size));
  if (args.granularity == Granularity::kGroup) {
    if (group_size.is_null() || group_size.get<int64_t>() <= 0)
      return corrupt(where + ".group_size", "expected a positive integer");
    args.group_size = group_size.get<int64_t>();
  }
  if (args.granularity == Granularity::kBlock) SLIM_TRY(read_block(json, where, args));
  const auto dynamic = json.find("dynamic");
  if (dynamic != json.end() && !dynamic->is_boolean()) {
    return Status(Code::kUnsupported, "quantization_config." + where + ".dynamic: slim reads true and false only");
  }
  args.dynamic = dynamic != json.end() && dynamic->get<bool>();
  return args;
}

Result<std::vector<std::string>> read_strings(const Json& object, const char* key, const std::string& where) {
  std::vector<std::string> strings;
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return strings;
  if (!found->is_array()) return corrupt(where + key, "expected a list of strings");
  for (const Json& entry : *found) {
    if (!entry.is_string()) return corrupt(where + key, "expected a list of strings");
    strings.push_back(entry.get<std::string>());
  }
  for (const std::string& text : strings) {
    if (!text.starts_with("re:")) continue;
    try {
      (void)std::regex(text.substr(3));
    } catch (const std::regex_error&) {
      return corrupt(where + key, "'" + text + "' is no valid pattern");
    }
  }
  return strings;
}

}  // namespace

Result<Config> Config::parse(std::string_view text) try {
  const Json json = Json::parse(text);
  const auto groups = json.find("config_groups");
  if (groups == json.end() || !groups->is_object()) return corrupt("config_groups", "expected an object");
  Config config;
  SLIM_ASSIGN(config.ignore_, read_strings(json, "ignore", ""));
  for (const auto& [name, group] : groups->items()) {
    const std::string where = "config_groups." + name;
    if (!group.is_object()) return corrupt(where, "expected an object");
    Scheme scheme;
    const auto part = [&group = group](const char* key) { return group.contains(key) && !group[key].is_null(); };
    if (part("weights")) {
      SLIM_ASSIGN(scheme.weight, read_args(group["weights"], where + ".weights"));
    }
    if (part("input_activations")) {
      SLIM_ASSIGN(scheme.input, read_args(group["input_activations"], where + ".input_activations"));
    }
    scheme.name = formats::scheme_name(scheme);
    SLIM_ASSIGN(const std::vector<std::string> targets, read_strings(group, "targets", where + "."));
    for (const std::string& target : targets) config.targets_.push_back({target, config.schemes_.size()});
    config.schemes_.push_back(std::move(scheme));
  }
  return config;
} catch (const nlohmann::json::exception& error) {
  return Status(Code::kCorrupt, std::string("quantization_config: ") + error.what());
}

const Scheme* Config::find(const std::string& module) const {
  const auto matches = [&](const std::string& text) {
    return text == module || (text.starts_with("re:") && formats::matches_start(text.substr(3), module));
  };
  if (std::any_of(ignore_.begin(), ignore_.end(), matches)) return nullptr;
  const Target* best = nullptr;
  int best_rank = 0;
  for (const Target& target : targets_) {
    const int rank = target.text == module ? 3 : target.text == "Linear" ? 1 : matches(target.text) ? 2 : 0;
    if (rank > best_rank) {
      best = &target;
      best_rank = rank;
    }
  }
  return best ? &schemes_[best->scheme] : nullptr;
}

}  // namespace slim::compressed_tensors
