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

std::vector<std::string> split(const std::string& text);

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
  Status read_rules(const toml::array& tables, std::vector<LayerRule>& rules);
  Status read_rule(const toml::table& table, LayerRule& rule);
  Status read_outputs(const toml::array& tables);
  Status read_output(const toml::table& table, OutputConfig& output);
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
  const bool rules = key == "rule" || key == "compression.rule";
  if (rules && node.is_array_of_tables()) return read_rules(*node.as_array(), config.rules);
  if (key == "output" && node.is_array_of_tables()) return read_outputs(*node.as_array());
  if (is_plugin_table(key, node)) return read_plugin(*node.as_table(), key.substr(key.find('.') + 1));
  if (node.is_table()) return read_table(*node.as_table(), key + ".");
  const ConfigKey* known = find_config_key(key);
  if (!known) return at(node, unknown_key(key));
  auto value = value_of(node);
  if (!value.ok()) return at(node, value.status().in(key));
  return at(node, assign(*known, *value, config).in(key));
}

std::vector<std::string> texts_of(const ConfigValue& value) {
  if (const auto* list = std::get_if<std::vector<std::string>>(&value.data)) return *list;
  return {*text_of(value)};
}

Status Reader::read_rule(const toml::table& table, LayerRule& rule) {
  for (const auto& [name, node] : table) {
    const std::string key(name.str());
    auto value = value_of(node);
    if (!value.ok()) return at(node, value.status().in("rule." + key));
    const std::vector<std::string> texts = texts_of(*value);
    const auto* number = std::get_if<int64_t>(&value->data);
    const bool text = std::holds_alternative<std::string>(value->data);
    const bool list = std::holds_alternative<std::vector<std::string>>(value->data);
    if (key == "match" && (text || list)) rule.match = texts;
    else if (key == "scheme" && text) rule.scheme = texts.front();
    else if ((key == "algorithm" || key == "plugin") && (text || list)) rule.plugins = list ? texts : split(texts.front());
    else if (key == "group_size" && number && *number >= -1) rule.group_size = *number;
    else if (key == "match" || key == "scheme" || key == "algorithm" || key == "plugin" || key == "group_size")
      return at(node, Status(Code::kInvalidArgument, "rule." + key + ": expected " +
                                                         (key == "group_size" ? "an integer of at least -1" : "a text or a list of texts")));
    else
      return at(node, Status(Code::kInvalidArgument, "unknown key 'rule." + key + "'" +
                                                         did_you_mean(key, {"match", "scheme", "algorithm", "group_size"})));
  }
  if (rule.match.empty()) return at(table, Status(Code::kInvalidArgument, "a [[rule]] without match"));
  if (rule.scheme.empty() && rule.plugins.empty() && rule.group_size == 0) {
    return at(table, Status(Code::kInvalidArgument, "rule '" + rule.text() + "' says nothing: give scheme, algorithm or group_size"));
  }
  return {};
}

Status Reader::read_rules(const toml::array& tables, std::vector<LayerRule>& rules) {
  rules.clear();
  for (const toml::node& node : tables) SLIM_TRY(read_rule(*node.as_table(), rules.emplace_back()));
  return {};
}

/// The keys of an [[output]] are those of [output], [compression.quantization] and [compression].
const ConfigKey* find_output_key(const std::string& name) {
  for (const char* section : {"output.", "compression.quantization.", "compression."}) {
    if (const ConfigKey* key = find_config_key(section + name)) return key;
  }
  return nullptr;
}

Status Reader::read_output(const toml::table& table, OutputConfig& output) {
  for (const auto& [name, node] : table) {
    const std::string key(name.str());
    if (key == "rule" && node.is_array_of_tables()) {
      SLIM_TRY(read_rules(*node.as_array(), output.rules.emplace()));
      continue;
    }
    if (const auto* options = node.as_table()) {  // [output.awq]: options of a plugin
      for (const auto& [option, scalar] : *options) {
        const auto value = scalar_of(scalar);
        if (!value) return at(scalar, Status(Code::kInvalidArgument, "output." + key + "." + std::string(option.str()) + ": expected one value"));
        output.settings.push_back({"compression." + key + "." + std::string(option.str()), {*text_of(*value)}});
      }
      continue;
    }
    const ConfigKey* known = find_output_key(key);
    if (!known) return at(node, unknown_key("output." + key));
    auto value = value_of(node);
    if (!value.ok()) return at(node, value.status().in("output." + key));
    std::vector<std::string> texts = texts_of(*value);
    if (known->name == "compression.plugin" && texts.size() == 1) texts = split(texts.front());
    output.settings.push_back({known->name, std::move(texts)});
  }
  return {};
}

/// What every output leaves open is the first one's: a configuration of outputs alone names no algorithm elsewhere.
Status Reader::read_outputs(const toml::array& tables) {
  config.outputs.clear();
  for (const toml::node& node : tables) {
    OutputConfig& output = config.outputs.emplace_back();
    output.origin = path + ":" + std::to_string(node.source().begin.line);
    SLIM_TRY(read_output(*node.as_table(), output));
  }
  return {};
}

Status Reader::read_table(const toml::table& table, const std::string& prefix) {
  for (const auto& [name, node] : table) {
    const std::string key = prefix + std::string(name.str());
    if (prefix.empty() && (key == "rule" || key == "output") && node.is_array_of_tables()) {
      SLIM_TRY(read_node(node, key));
      continue;
    }
    if (key == "rule") {
      return at(node, Status(Code::kInvalidArgument, "rules are tables of a list: write [[rule]]"));
    }
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

/// What a configuration leaves open that consists of outputs alone: the first one's algorithm and path.
void adopt_first_output(RunConfig& config) {
  if (config.outputs.empty()) return;
  for (const auto& [key, values] : config.outputs.front().settings) {
    if (key == "compression.plugin" && config.plugins.empty()) config.plugins = values;
    if (key == "output.path" && config.output.empty()) config.output = values.front();
  }
}

/// Every chain that a run may use: its own, its rules' and its outputs'.
std::vector<std::string> all_plugins(const RunConfig& config) {
  std::vector<std::string> plugins = config.plugins;
  const auto add = [&](const std::vector<std::string>& more) { plugins.insert(plugins.end(), more.begin(), more.end()); };
  for (const LayerRule& rule : config.rules) add(rule.plugins);
  for (const OutputConfig& output : config.outputs) {
    for (const auto& [key, values] : output.settings) {
      if (key == "compression.plugin") add(values);
    }
    for (const LayerRule& rule : output.rules.value_or(std::vector<LayerRule>{})) add(rule.plugins);
  }
  return plugins;
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
  adopt_first_output(result);
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
  for (const std::string& entry : all_plugins(config)) ids.push_back(chain_id(entry));
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

std::string LayerRule::text() const {
  return join(match, " ") + "=" + scheme + (plugins.empty() ? "" : ":" + join(plugins, ","));
}

Result<LayerRule> parse_rule(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == 0 || equals == std::string::npos || equals + 1 == text.size()) {
    return Status(Code::kInvalidArgument, "found '" + text + "', expected MATCH=SCHEME or MATCH=SCHEME:PLUGIN");
  }
  const std::string value = text.substr(equals + 1);
  const size_t colon = value.find(':');
  LayerRule rule;
  rule.match = {text.substr(0, equals)};
  rule.scheme = value.substr(0, colon);
  if (colon != std::string::npos) rule.plugins = split(value.substr(colon + 1));
  return rule;
}

Result<std::vector<RunConfig>> output_configs(const RunConfig& config) {
  if (config.outputs.empty()) return std::vector<RunConfig>{config};
  std::vector<RunConfig> all;
  std::vector<std::string> paths;
  for (const OutputConfig& output : config.outputs) {
    RunConfig one = config;
    one.outputs.clear();
    one.output.clear();
    for (const bool names_scheme : {true, false}) {  // a scheme's name starts over, so it comes before what refines it
      for (const auto& [key, values] : output.settings) {
        if ((key == "compression.quantization.name") == names_scheme) SLIM_TRY(set_config_key(key, values, one).in(output.origin));
      }
    }
    if (output.rules) one.rules = *output.rules;
    if (one.output.empty()) return Status(Code::kInvalidArgument, output.origin + ": an [[output]] without path");
    if (std::find(paths.begin(), paths.end(), one.output) != paths.end()) {
      return Status(Code::kInvalidArgument, output.origin + ": two outputs have the path " + one.output);
    }
    paths.push_back(one.output);
    all.push_back(std::move(one));
  }
  if (config.output != paths.front()) {
    return Status(Code::kInvalidArgument, "output.path (--output) " + config.output + " and [[output]] exclude each other; leave one out");
  }
  return all;
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
