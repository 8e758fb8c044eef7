#include "config.h"

#include <map>
#include <nlohmann/json.hpp>
#include <regex>

namespace slim::compressed_tensors {
namespace {

using Json = nlohmann::ordered_json;

Status unsupported(const Scheme& scheme, const std::string& why) {
  return {Code::kUnsupported, "compressed-tensors cannot store scheme " + scheme.name + ": " + why};
}

// ---- writing ----------------------------------------------------------------------------------------------------------

const char* strategy_name(Granularity granularity) {
  switch (granularity) {
    case Granularity::kTensor: return "tensor";
    case Granularity::kChannel: return "channel";
    case Granularity::kGroup: return "group";
    case Granularity::kBlock: return "block";
    case Granularity::kToken: return "token";
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

/// A pattern for one layer, or with `any_number` for the same layer of every block. What precedes "layers." is left open: engines
/// and transformers put other prefixes there than the checkpoint.
std::string pattern_of(const std::string& name, bool any_number) {
  size_t begin = std::string::npos;
  for (const char* word : {"layers.", "blocks."}) begin = std::min(begin, name.find(word));
  std::string pattern = begin == std::string::npos ? "re:^" : "re:.*\\b";
  for (size_t i = begin == std::string::npos ? 0 : begin; i < name.size();) {
    const bool digit = name[i] >= '0' && name[i] <= '9';
    if (digit && any_number && (i == 0 || name[i - 1] == '.')) {
      while (i < name.size() && name[i] >= '0' && name[i] <= '9') ++i;
      pattern += "\\d+";
    } else {
      if (std::string_view(".^$|()[]{}*+?\\").find(name[i]) != std::string_view::npos) pattern += '\\';
      pattern += name[i++];
    }
  }
  return pattern + "$";
}

bool matches_pattern(const std::string& pattern, const std::string& name) {
  return std::regex_search(name, std::regex(pattern.substr(3)), std::regex_constants::match_continuous);
}

struct Group {
  const Scheme* scheme = nullptr;
  Storage storage = Storage::kPacked;
  std::vector<std::string> layers;
};

/// Patterns that match the layers of `group`, and none of another group. A pattern for all blocks is used where they agree.
Result<std::vector<std::string>> targets_of(const Group& group, const std::map<std::string, const Scheme*>& scheme_of) {
  std::map<std::string, bool> general;  // pattern -> no layer of another group matches it
  std::vector<std::string> targets;
  const auto only_ours = [&](const std::string& pattern) {
    const std::regex regex(pattern.substr(3));
    return std::all_of(scheme_of.begin(), scheme_of.end(), [&](const auto& entry) {
      return entry.second == group.scheme || !std::regex_search(entry.first, regex, std::regex_constants::match_continuous);
    });
  };
  for (const std::string& name : group.layers) {
    const std::string any_block = pattern_of(name, true);
    if (const auto [it, inserted] = general.emplace(any_block, false); inserted) {
      it->second = only_ours(any_block);
      if (it->second) targets.push_back(any_block);
    }
    if (general[any_block]) continue;
    const std::string one = pattern_of(name, false);
    targets.push_back(only_ours(one) ? one : name);
  }
  return targets;
}

}  // namespace

std::string_view storage_name(Storage storage) {
  switch (storage) {
    case Storage::kPacked: return "pack-quantized";
    case Storage::kInt: return "int-quantized";
    case Storage::kFloat: return "float-quantized";
  }
  return "";
}

Result<Storage> storage_of(const Scheme& scheme) {
  if (scheme.sparsity) {
    return unsupported(scheme, "sparse formats were removed from compressed-tensors after 0.14; choose a scheme without pruning");
  }
  if (!scheme.weight) return unsupported(scheme, "it quantizes no weight");
  const QuantArgs& weight = *scheme.weight;
  const bool whole = weight.granularity == Granularity::kTensor || weight.granularity == Granularity::kChannel;
  if (weight.type == NumberType::kFloat) {
    if (!whole && weight.granularity != Granularity::kBlock) return unsupported(scheme, "FP8 weights have scales per tensor, channel or block");
    return Storage::kFloat;
  }
  if (!scheme.input) {
    if (weight.granularity == Granularity::kChannel || weight.granularity == Granularity::kGroup) return Storage::kPacked;
    return unsupported(scheme, "packed integer weights have scales per channel or group");
  }
  if (weight.bits != 8 || !weight.symmetric || !whole) {
    return unsupported(scheme, "with quantized activations, integer weights are 8-bit and symmetric, per channel or tensor");
  }
  return Storage::kInt;
}

Result<std::string> write_config(const OutputModel& model) {
  std::vector<Group> groups;
  std::map<std::string, const Scheme*> scheme_of;
  for (const auto& [name, scheme] : model.schemes) {
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
      return g.scheme->weight == scheme.weight && g.scheme->input == scheme.input;
    });
    if (group == groups.end()) {
      SLIM_ASSIGN(const Storage storage, storage_of(scheme));
      group = groups.insert(group, Group{&scheme, storage, {}});
    }
    group->layers.push_back(name);
    scheme_of[name] = group->scheme;
  }
  if (groups.empty()) return std::string();

  Json config;
  const bool one_storage = std::all_of(groups.begin(), groups.end(), [&](const Group& g) { return g.storage == groups[0].storage; });
  config["quant_method"] = "compressed-tensors";
  config["format"] = one_storage ? storage_name(groups[0].storage) : "mixed-precision";
  config["quantization_status"] = "compressed";
  for (size_t i = 0; i < groups.size(); ++i) {
    Json group;
    if (groups.size() == 1) {
      group["targets"] = {"Linear"};
    } else {
      SLIM_ASSIGN(group["targets"], targets_of(groups[i], scheme_of));
    }
    group["format"] = storage_name(groups[i].storage);
    group["weights"] = args_json(*groups[i].scheme->weight);
    group["input_activations"] = groups[i].scheme->input ? args_json(*groups[i].scheme->input) : Json(nullptr);
    group["output_activations"] = nullptr;
    config["config_groups"]["group_" + std::to_string(i)] = std::move(group);
  }
  config["ignore"] = model.ignore;
  config["kv_cache_scheme"] = nullptr;
  config["global_compression_ratio"] = nullptr;
  config["sparsity_config"] = Json::object();
  config["transform_config"] = Json::object();
  config["version"] = "0.19.0";
  return config.dump();
}

// ---- reading ----------------------------------------------------------------------------------------------------------

namespace {

Status corrupt(const std::string& where, const std::string& what) {
  return {Code::kCorrupt, "quantization_config." + where + ": " + what};
}

std::optional<Granularity> granularity_of(const std::string& strategy) {
  for (const Granularity g : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup, Granularity::kBlock, Granularity::kToken}) {
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
  if (args.block_rows <= 0 || args.block_columns <= 0) return corrupt(where + ".block_structure", "expected positive integers");
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
  return Status(Code::kUnsupported, "quantization_config." + where + ".strategy: slim does not read '" + strategy->get<std::string>() + "'");
}

Result<QuantArgs> read_args(const Json& json, const std::string& where) {
  if (!json.is_object()) return corrupt(where, "expected an object");
  QuantArgs args;
  const std::string type = json.value("type", "int");
  if (type != "int" && type != "float") return corrupt(where + ".type", "expected \"int\" or \"float\", found \"" + type + "\"");
  args.type = type == "int" ? NumberType::kInt : NumberType::kFloat;
  args.bits = json.value("num_bits", 8);
  if (args.bits < 2 || args.bits > 8 || (args.type == NumberType::kFloat && args.bits != 8)) {
    return Status(Code::kUnsupported, "quantization_config." + where + ": slim does not read " + type + " codes of " +
                                          std::to_string(args.bits) + " bits");
  }
  args.symmetric = json.value("symmetric", true);
  const auto size = json.find("group_size");
  const Json group_size = size == json.end() ? Json(nullptr) : *size;
  if (!group_size.is_null() && !group_size.is_number_integer()) return corrupt(where + ".group_size", "expected an integer or null");
  SLIM_ASSIGN(args.granularity, read_granularity(json, where, group_size));
  if (args.granularity == Granularity::kGroup) {
    if (group_size.is_null() || group_size.get<int64_t>() <= 0) return corrupt(where + ".group_size", "expected a positive integer");
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

/// The name under which slim knows the scheme, or a description.
std::string scheme_name(const Scheme& scheme) {
  const bool grouped = scheme.weight && scheme.weight->granularity == Granularity::kGroup;
  for (const std::string& name : scheme_names()) {
    for (const int64_t size : {int64_t{0}, grouped ? scheme.weight->group_size : int64_t{-1}}) {
      const Result<Scheme> known = scheme_from_name(name, size);
      if (known.ok() && known->weight == scheme.weight && known->input == scheme.input && known->sparsity == scheme.sparsity) return name;
    }
  }
  return "compressed-tensors " + std::to_string(scheme.weight ? scheme.weight->bits : 16) + " bit";
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
    const auto part = [&](const char* key) { return group.contains(key) && !group[key].is_null(); };
    if (part("weights")) {
      SLIM_ASSIGN(scheme.weight, read_args(group["weights"], where + ".weights"));
    }
    if (part("input_activations")) {
      SLIM_ASSIGN(scheme.input, read_args(group["input_activations"], where + ".input_activations"));
    }
    scheme.name = scheme_name(scheme);
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
    return text == module || (text.starts_with("re:") && matches_pattern(text, module));
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
