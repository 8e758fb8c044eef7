#include "config/run_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "config/keys.h"
#include "plugin/scan.h"
#include "util/nearest.h"

namespace slim {
namespace {

constexpr std::string_view kSections[] = {"model", "compression", "dataset", "output", "run", "global"};

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

/// "awq.grid" is short for "compression.awq.grid": sections have names of their own.
std::string full_key(const std::string& key) {
  const size_t dot = key.find('.');
  const bool short_form = dot != std::string::npos && !is_config_section(key.substr(0, dot));
  return short_form ? "compression." + key : key;
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

/// Every chain that a run may use: its own, its rules' and its outputs'.
std::vector<std::string> all_plugins(const RunConfig& config) {
  std::vector<std::string> plugins = config.plugins;
  const auto add = [&](const std::vector<std::string>& more) {
    plugins.insert(plugins.end(), more.begin(), more.end());
  };
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

bool is_config_section(std::string_view name) {
  return std::find(std::begin(kSections), std::end(kSections), name) != std::end(kSections);
}

std::vector<std::string> config_sections() { return {std::begin(kSections), std::end(kSections)}; }

Status unknown_key(const std::string& key) {
  return Status(Code::kInvalidArgument, "unknown key '" + key + "'" + suggestion(key));
}

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
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
  return set_config_key(key, list ? split_list(text) : std::vector<std::string>{text}, config)
      .in("--set " + assignment);
}

Status check_plugin_options(const RunConfig& config) {
  std::vector<std::string> ids;
  for (const std::string& entry : all_plugins(config)) ids.push_back(chain_id(entry));
  for (const auto& [plugin, options] : config.plugin_options) {
    if (std::find(ids.begin(), ids.end(), plugin) != ids.end()) continue;
    std::vector<std::string> candidates = config_sections();
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
    return Status(Code::kInvalidArgument,
                  "found '" + text + "', expected MATCH=SCHEME or MATCH=SCHEME:PLUGIN");
  }
  const std::string value = text.substr(equals + 1);
  const size_t colon = value.find(':');
  LayerRule rule;
  rule.match = {text.substr(0, equals)};
  rule.scheme = value.substr(0, colon);
  if (colon != std::string::npos) rule.plugins = split_list(value.substr(colon + 1));
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
    for (const bool names_scheme :
         {true, false}) {  // a scheme's name starts over, so it comes before what refines it
      for (const auto& [key, values] : output.settings) {
        if ((key == "compression.quantization.name") == names_scheme)
          SLIM_TRY(set_config_key(key, values, one).in(output.origin));
      }
    }
    if (output.rules) one.rules = *output.rules;
    if (one.output.empty())
      return Status(Code::kInvalidArgument, output.origin + ": an [[output]] without path");
    if (std::find(paths.begin(), paths.end(), one.output) != paths.end()) {
      return Status(Code::kInvalidArgument, output.origin + ": two outputs have the path " + one.output);
    }
    paths.push_back(one.output);
    all.push_back(std::move(one));
  }
  if (config.output != paths.front()) {
    return Status(Code::kInvalidArgument, "output.path (--output) " + config.output +
                                              " and [[output]] exclude each other; leave one out");
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
