#include "config/run_config.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "config/keys.h"
#include "plugin/scan.h"
#include "util/nearest.h"

namespace slim {
namespace {

constexpr std::string_view kSections[] = {"model", "compression", "dataset", "output", "run", "global"};

bool is_section(std::string_view name) {
  return std::find(std::begin(kSections), std::end(kSections), name) != std::end(kSections);
}

std::vector<std::string> section_names() { return {std::begin(kSections), std::end(kSections)}; }

/// A misspelt key is looked for with its section, and by its last part alone.
std::string suggestion(const std::string& key) {
  const std::vector<std::string> names = config_key_names();
  std::string best = nearest(key, names);
  const std::string last = key.substr(key.rfind('.') + 1);
  for (const std::string& name : names) {
    if (name.substr(name.rfind('.') + 1) == last) best = name;
  }
  return best.empty() ? "; `slim --help-keys` lists all" : "; did you mean '" + best + "'?";
}

Status unknown_key(const std::string& key) {
  return Status(Code::kInvalidArgument, "unknown key '" + key + "'" + suggestion(key));
}

// ---- TOML -------------------------------------------------------------------------------------------------------------

/// One file while it is read.
struct Reader {
  std::string path;
  RunConfig& config;

  Status at(const toml::node& node, Status status) const {
    return std::move(status).in(path + ":" + std::to_string(node.source().begin.line));
  }
  Status read_table(const toml::table& table, const std::string& prefix);
  Status read_node(const toml::node& node, const std::string& key);
  Status read_plugin(const toml::table& table, const std::string& plugin);
};

std::optional<ConfigValue> scalar_of(const toml::node& node) {
  if (const auto* value = node.as_boolean()) return ConfigValue{value->get()};
  if (const auto* value = node.as_integer()) return ConfigValue{value->get()};
  if (const auto* value = node.as_floating_point()) return ConfigValue{value->get()};
  if (const auto* value = node.as_string()) return ConfigValue{value->get()};
  return std::nullopt;
}

Result<ConfigValue> value_of(const toml::node& node) {
  if (auto scalar = scalar_of(node)) return *std::move(scalar);
  const toml::array* array = node.as_array();
  if (!array)
    return Status(Code::kInvalidArgument, "expected a text, number, true or false, or a list of texts");
  std::vector<std::string> texts;
  for (const toml::node& entry : *array) {
    if (!entry.is_string()) return Status(Code::kInvalidArgument, "expected a list of texts only");
    texts.push_back(entry.as_string()->get());
  }
  return ConfigValue{std::move(texts)};
}

/// [compression.<id>] is a plugin's own unless `key` is one of ours.
bool is_plugin_table(const std::string& key, const toml::node& node) {
  const bool in_compression = key.starts_with("compression.") && std::count(key.begin(), key.end(), '.') == 1;
  return node.is_table() && in_compression && key != "compression.quantization";
}

Status Reader::read_plugin(const toml::table& table, const std::string& plugin) {
  for (const auto& [name, node] : table) {
    const std::string option(name.str());
    const auto value = scalar_of(node);
    if (!value) {
      return at(node, Status(Code::kInvalidArgument, "compression." + plugin + "." + option +
                                                         ": expected a text, number, true or false"));
    }
    config.plugin_options[plugin][option] = *text_of(*value);
  }
  config.plugin_options.try_emplace(plugin);  // an empty table names a plugin too
  return {};
}

Status Reader::read_node(const toml::node& node, const std::string& key) {
  if (is_plugin_table(key, node)) return read_plugin(*node.as_table(), key.substr(key.find('.') + 1));
  if (node.is_table()) return read_table(*node.as_table(), key + ".");
  const ConfigKey* known = find_config_key(key);
  if (!known) return at(node, unknown_key(key));
  auto value = value_of(node);
  if (!value.ok()) return at(node, value.status().in(key));
  return at(node, assign(*known, *value, config).in(key));
}

Status Reader::read_table(const toml::table& table, const std::string& prefix) {
  for (const auto& [name, node] : table) {
    const std::string key = prefix + std::string(name.str());
    if (prefix.empty() && !is_section(key)) {
      const std::string hint = did_you_mean(key, section_names());
      return at(node, Status(Code::kInvalidArgument, "unknown section [" + key + "]" + hint +
                                                         " (there are: " + join(section_names()) + ")"));
    }
    if (prefix.empty() && !node.is_table()) {
      return at(node, Status(Code::kInvalidArgument, "'" + key + "' is a section: write [" + key + "]"));
    }
    SLIM_TRY(read_node(node, key));
  }
  return {};
}

Result<std::string> read_text(const std::string& path) {
  constexpr std::uintmax_t kLargest = 1 << 20;
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return Status(Code::kNotFound, path + ": no such configuration file");
  }
  if (std::filesystem::file_size(path, error) > kLargest) {
    return Status(Code::kInvalidArgument, path + ": larger than 1 MiB, so no configuration file");
  }
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream) return Status(Code::kIo, path + ": cannot be read");
  return text.str();
}

Result<toml::table> parse_toml(const std::string& text, const std::string& path) {
  try {
    return toml::table(toml::parse(text));
  } catch (const toml::parse_error& error) {
    return Status(Code::kInvalidArgument, path + ":" + std::to_string(error.source().begin.line) +
                                              ": no valid TOML: " + std::string(error.description()));
  }
}

// ---- flags ------------------------------------------------------------------------------------------------------------

/// "awq.grid" is short for "compression.awq.grid": sections have names of their own.
std::string full_key(const std::string& key) {
  const size_t dot = key.find('.');
  const bool short_form = dot != std::string::npos && !is_section(key.substr(0, dot));
  return short_form ? "compression." + key : key;
}

/// "a,b" in its parts, empty ones left out.
std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

/// The plugin and option of "compression.<plugin>.<option>".
std::optional<std::pair<std::string, std::string>> plugin_option(const std::string& key) {
  constexpr std::string_view kPrefix = "compression.";
  if (!key.starts_with(kPrefix) || key.starts_with("compression.quantization.")) return std::nullopt;
  const std::string rest = key.substr(kPrefix.size());
  const size_t dot = rest.find('.');
  if (dot == 0 || dot == std::string::npos || dot + 1 == rest.size()) return std::nullopt;
  return std::pair(rest.substr(0, dot), rest.substr(dot + 1));
}

/// The id that a chain entry stands for: itself, or what a plugin's file name says.
std::string chain_id(const std::string& entry) {
  const auto named = parse_plugin_file_name(entry);
  return named ? named->second : entry;
}

}  // namespace

Status read_config_file(const std::string& path, RunConfig& config) {
  SLIM_ASSIGN(const std::string text, read_text(path));
  SLIM_ASSIGN(const toml::table table, parse_toml(text, path));
  RunConfig result = config;  // untouched when the file has an error
  SLIM_TRY((Reader{path, result}.read_table(table, "")));
  SLIM_TRY(resolve_scheme(result).in(path));
  config = std::move(result);
  return {};
}

Status set_config_key(const std::string& key, const std::vector<std::string>& values, RunConfig& config) {
  const std::string full = full_key(key);
  const ConfigKey* known = find_config_key(full);
  const auto option = plugin_option(full);
  if (!known && option && values.size() == 1) {
    config.plugin_options[option->first][option->second] = values[0];
    return {};
  }
  if (!known) return unknown_key(key);
  ConfigValue value{values, true};
  if (values.size() == 1) value.data = values[0];
  RunConfig result = config;
  if (known == find_config_key("compression.quantization.name"))
    result.scheme_keys.clear();  // a new name starts over
  SLIM_TRY(assign(*known, value, result).in(known->name));
  SLIM_TRY(resolve_scheme(result));
  config = std::move(result);
  return {};
}

Status set_config_value(const std::string& assignment, RunConfig& config) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    return Status(Code::kInvalidArgument, "--set " + assignment + ": expected key=value");
  }
  const std::string key = assignment.substr(0, equals), text = assignment.substr(equals + 1);
  const ConfigKey* known = find_config_key(full_key(key));
  const bool list = known && std::holds_alternative<std::vector<std::string> RunConfig::*>(known->target);
  return set_config_key(key, list ? split(text) : std::vector<std::string>{text}, config)
      .in("--set " + assignment);
}

Status check_plugin_options(const RunConfig& config) {
  std::vector<std::string> ids;
  for (const std::string& entry : config.plugins) ids.push_back(chain_id(entry));
  for (const auto& [plugin, options] : config.plugin_options) {
    if (std::find(ids.begin(), ids.end(), plugin) != ids.end()) continue;
    std::vector<std::string> candidates = section_names();
    candidates.insert(candidates.end(), ids.begin(), ids.end());
    candidates.push_back("quantization");
    return Status(Code::kInvalidArgument, "[compression." + plugin + "] belongs to no plugin of the chain (" +
                                              (ids.empty() ? "empty" : join(ids)) + ")" +
                                              did_you_mean(plugin, candidates));
  }
  return {};
}

Result<int64_t> parse_bytes(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1},
                                                            {"B", 1},
                                                            {"K", 1e3},
                                                            {"M", 1e6},
                                                            {"G", 1e9},
                                                            {"T", 1e12},
                                                            {"KB", 1e3},
                                                            {"MB", 1e6},
                                                            {"GB", 1e9},
                                                            {"TB", 1e12},
                                                            {"KIB", 1024.0},
                                                            {"MIB", 1048576.0},
                                                            {"GIB", 1073741824.0},
                                                            {"TIB", 1099511627776.0}};
  const auto wrong = [&] {
    return Status(Code::kInvalidArgument,
                  "found '" + std::string(text) + "', expected bytes, as 5GB, 512MiB or 1000000");
  };
  double number = 0;
  const auto [stop, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc{}) return wrong();
  std::string unit(stop, text.data() + text.size());
  for (char& c : unit) c = static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  for (const auto& [name, factor] : kUnits) {
    const double bytes = number * factor;
    if (unit == name && bytes >= 0 && bytes < 9.2e18) return static_cast<int64_t>(std::llround(bytes));
  }
  return wrong();
}

}  // namespace slim
