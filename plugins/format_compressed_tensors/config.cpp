#include "config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>

#include "common/name_patterns.hpp"
#include "common/stored_layer.hpp"

namespace slim::compressed_tensors {
namespace {

using Json = nlohmann::ordered_json;

Status corrupt(const std::string& where, const std::string& what) {
  return {Code::kCorrupt, "quantization_config." + where + ": " + what};
}

std::optional<Granularity> granularity_of(const std::string& strategy) {
  for (const Granularity g : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup,
                              Granularity::kBlock, Granularity::kToken}) {
    if (strategy == strategy_name(g)) return g;
  }
  return std::nullopt;
}

Status read_block(const Json& json, const std::string& where, QuantArgs& args) {
  const auto block = json.find("block_structure");
  const bool pair = block != json.end() && block->is_array() && block->size() == 2 &&
                    (*block)[0].is_number_integer() && (*block)[1].is_number_integer();
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
    return Status(Code::kUnsupported, "quantization_config." + where + ": slim does not read " + type +
                                          " codes of " + std::to_string(args.bits) + " bits");
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
    return Status(Code::kUnsupported,
                  "quantization_config." + where + ".dynamic: slim reads true and false only");
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
  config.status_ = json.value("quantization_status", "");
  config.format_ = json.value("format", "");
  config.cache_ = json.contains("kv_cache_scheme") && !json["kv_cache_scheme"].is_null();
  for (const auto& [name, group] : groups->items()) {
    const std::string where = "config_groups." + name;
    if (!group.is_object()) return corrupt(where, "expected an object");
    Scheme scheme;
    const auto part = [&group = group](const char* key) {
      return group.contains(key) && !group[key].is_null();
    };
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
