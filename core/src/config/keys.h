#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/run_config.h"

namespace slim {

/// A value of a TOML file or of --set, before its key has given it a type.
struct ConfigValue {
  std::variant<bool, int64_t, double, std::string, std::vector<std::string>> data;
  bool is_text = false;  ///< from --set or a flag: text that may also stand for a number or a switch
};

/// One key of the configuration: everything that parsing, --set, messages and the listing need to know of it.
struct ConfigKey {
  using Custom = Status (*)(RunConfig&, const std::string& text);  ///< the error says what was expected
  using Target = std::variant<std::string RunConfig::*, std::vector<std::string> RunConfig::*,
                              bool RunConfig::*, std::vector<LayerRule> RunConfig::*, int64_t RunConfig::*,
                              uint64_t RunConfig::*, int RunConfig::*, Custom>;
  std::string name;                  ///< "dataset.num_samples"
  std::vector<std::string> aliases;  ///< other full names
  Target target;
  std::string values;  ///< of strings: "a|b" are the only ones allowed; else how a value looks
  int64_t minimum = 0, maximum = INT64_MAX;  ///< of integers
  std::string doc;
};

SLIM_API const std::vector<ConfigKey>& config_keys();
/// By name or alias; null if there is none.
const ConfigKey* find_config_key(std::string_view name);
/// Name and value of everything that the configuration says, for comparisons: keys, words about the scheme, plugin options, outputs.
SLIM_API std::map<std::string, std::string> config_values(const RunConfig&);
/// All names and aliases.
SLIM_API std::vector<std::string> config_key_names();
/// The tables of a file, and first parts of keys: "model", "dataset".
std::vector<std::string> config_sections();
bool is_config_section(std::string_view name);
/// Says which key was meant.
Status unknown_key(const std::string& key);
/// "a,b" in its parts, empty ones left out.
std::vector<std::string> split_list(const std::string& text);
/// The text of a scalar; nullopt for a list.
std::optional<std::string> text_of(const ConfigValue&);
/// Converts and stores; kInvalidArgument says what was found and expected, not where.
Status assign(const ConfigKey&, const ConfigValue&, RunConfig&);
/// Recomputes scheme and group_size from scheme_keys (scheme_keys.cpp).
Status resolve_scheme(RunConfig&);

}  // namespace slim
