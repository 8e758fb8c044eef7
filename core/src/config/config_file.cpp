// Configurations as TOML files, or the same keys as YAML.
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "config/keys.h"
#include "config/run_config.h"
#include "config/yaml_file.h"
#include "util/nearest.h"

namespace slim {
namespace {

/// One file while it is read.
struct Reader {
  std::string path;
  const ConfigDocument& document;
  RunConfig& config;

  std::string place(const toml::node& node) const {
    const auto found = document.lines.find(&node);
    const int64_t line = found != document.lines.end() ? found->second : node.source().begin.line;
    return path + ":" + std::to_string(line);
  }
  Status at(const toml::node& node, Status status) const { return std::move(status).in(place(node)); }
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
    if (key == "match" && (text || list))
      rule.match = texts;
    else if (key == "scheme" && text)
      rule.scheme = texts.front();
    else if ((key == "algorithm" || key == "plugin") && (text || list))
      rule.plugins = list ? texts : split_list(texts.front());
    else if (key == "group_size" && number && *number >= -1)
      rule.group_size = *number;
    else if (key == "match" || key == "scheme" || key == "algorithm" || key == "plugin" ||
             key == "group_size")
      return at(node,
                Status(Code::kInvalidArgument, "rule." + key + ": expected " +
                                                   (key == "group_size" ? "an integer of at least -1"
                                                                        : "a text or a list of texts")));
    else
      return at(node, Status(Code::kInvalidArgument,
                             "unknown key 'rule." + key + "'" +
                                 did_you_mean(key, {"match", "scheme", "algorithm", "group_size"})));
  }
  if (rule.match.empty()) return at(table, Status(Code::kInvalidArgument, "a [[rule]] without match"));
  if (rule.scheme.empty() && rule.plugins.empty() && rule.group_size == 0) {
    return at(table, Status(Code::kInvalidArgument,
                            "rule '" + rule.text() + "' says nothing: give scheme, algorithm or group_size"));
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
        if (!value)
          return at(scalar, Status(Code::kInvalidArgument, "output." + key + "." + std::string(option.str()) +
                                                               ": expected one value"));
        output.settings.push_back(
            {"compression." + key + "." + std::string(option.str()), {*text_of(*value)}});
      }
      continue;
    }
    const ConfigKey* known = find_output_key(key);
    if (!known) return at(node, unknown_key("output." + key));
    auto value = value_of(node);
    if (!value.ok()) return at(node, value.status().in("output." + key));
    RunConfig other;  // the value is checked here, where its line is known, and set when all outputs are
    SLIM_TRY(at(node, assign(*known, *value, other).in("output." + key)));
    std::vector<std::string> texts = texts_of(*value);
    if (known->name == "compression.plugin" && texts.size() == 1) texts = split_list(texts.front());
    output.settings.push_back({known->name, std::move(texts)});
  }
  return {};
}

/// What every output leaves open is the first one's: a configuration of outputs alone names no algorithm elsewhere.
Status Reader::read_outputs(const toml::array& tables) {
  config.outputs.clear();
  for (const toml::node& node : tables) {
    OutputConfig& output = config.outputs.emplace_back();
    output.origin = place(node);
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
    if (prefix.empty() && !is_config_section(key)) {
      const std::string hint = did_you_mean(key, config_sections());
      return at(node, Status(Code::kInvalidArgument, "unknown section [" + key + "]" + hint +
                                                         " (there are: " + join(config_sections()) + ")"));
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

Result<ConfigDocument> parse_toml(const std::string& text, const std::string& path) {
  try {
    return ConfigDocument{toml::table(toml::parse(text)), {}};
  } catch (const toml::parse_error& error) {
    return Status(Code::kInvalidArgument, path + ":" + std::to_string(error.source().begin.line) +
                                              ": no valid TOML: " + std::string(error.description()));
  }
}

/// What a configuration leaves open that consists of outputs alone: the first one's algorithm and path.
void adopt_first_output(RunConfig& config) {
  if (config.outputs.empty()) return;
  for (const auto& [key, values] : config.outputs.front().settings) {
    if (key == "compression.plugin" && config.plugins.empty()) config.plugins = values;
    if (key == "output.path" && config.output.empty()) config.output = values.front();
  }
}

}  // namespace

Status read_config_file(const std::string& path, RunConfig& config) {
  SLIM_ASSIGN(const std::string text, read_text(path));
  SLIM_ASSIGN(const ConfigDocument document, is_yaml(path) ? parse_yaml(text, path) : parse_toml(text, path));
  RunConfig result = config;  // untouched when the file has an error
  SLIM_TRY((Reader{path, document, result}.read_table(document.table, "")));
  adopt_first_output(result);
  SLIM_TRY(resolve_scheme(result).in(path));
  config = std::move(result);
  return {};
}

}  // namespace slim
