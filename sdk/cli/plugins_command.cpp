// slim plugins: list and info; new and validate stand in files of their own
#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "output.h"
#include "plugin/options_schema.h"
#include "plugin/registry.h"
#include "plugin/scan.h"
#include "plugins.h"
#include "slim/ops.hpp"
#include "util/nearest.h"

namespace slim::cli {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const PluginInfo& info) {
  return Json{{"kind", kind_name(info.kind)},
              {"id", info.id},
              {"summary", info.summary},
              {"serves", info.serves},
              {"name", info.name},
              {"version", info.version},
              {"vendor", info.vendor},
              {"license", info.license},
              {"api", info.api},
              {"torch", info.torch},
              {"compiler", info.compiler},
              {"build_tag", info.build_tag},
              {"interface", info.interface},
              {"path", info.path},
              {"loadable", info.compatible.ok()},
              {"problem", info.compatible.message()},
              {"shadowed_by", info.shadowed_by}};
}

std::string dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";  // metadata need not be valid UTF-8
}

std::string padded(std::string text, size_t width) {
  text.resize(std::max(text.size() + 1, width), ' ');
  return text;
}

std::string list_line(const PluginInfo& info) {
  std::string note;
  if (!info.compatible.ok()) {
    note = "  CANNOT BE LOADED: " + info.compatible.message();
  } else if (!info.shadowed_by.empty()) {
    note = "  (hidden by " + info.shadowed_by + ")";
  }
  return padded(kind_name(info.kind), 11) + padded(info.id, 20) + padded(info.version, 9) + info.summary +
         note + "\n";
}

int list(const PluginRegistry& registry, bool json) {
  std::vector<PluginInfo> plugins = registry.list();
  std::stable_sort(plugins.begin(), plugins.end(), [](const PluginInfo& a, const PluginInfo& b) {
    return std::tie(a.kind, a.id) < std::tie(b.kind, b.id);
  });
  if (json) {
    Json entries = Json::array();
    for (const PluginInfo& info : plugins) entries.push_back(to_json(info));
    return print(dump(Json{{"search_path", registry.search_path()}, {"plugins", entries}}));
  }
  std::string text;
  for (const PluginInfo& info : plugins) text += list_line(info);
  if (plugins.empty()) text = "no plugins\n";
  return print(text + "searched: " + join(registry.search_path(), ":") + "\n");
}

std::string describe(const PluginInfo& info) {
  const std::pair<const char*, std::string> facts[] = {{"summary", info.summary},
                                                       {"serves", info.serves},
                                                       {"version", info.version},
                                                       {"vendor", info.vendor},
                                                       {"license", info.license},
                                                       {"API", info.api},
                                                       {"LibTorch", info.torch},
                                                       {"compiler", info.compiler},
                                                       {"build tag", info.build_tag},
                                                       {"interface", info.interface},
                                                       {"file", info.path},
                                                       {"hidden by", info.shadowed_by},
                                                       {"problem", info.compatible.message()}};
  std::string text = kind_name(info.kind) + " " + info.id + "\n";
  for (const auto& [name, value] : facts) {
    if (!value.empty()) text += "  " + padded(name, 11) + value + "\n";
  }
  return text;
}

std::string describe(const std::vector<OptionInfo>& options) {
  std::string text = options.empty() ? "  no options\n" : "  options (--set <plugin>.<option>=value):\n";
  for (const OptionInfo& option : options) {
    text += "    " + option.name + " = <" +
            (option.range.empty() ? option.type : option.type + ": " + option.range) + ">";
    if (!option.fallback.empty()) text += "  (default " + option.fallback + ")";
    text += "\n        " + option.description + "\n";
  }
  return text;
}

Json to_json(const std::vector<OptionInfo>& options) {
  Json entries = Json::array();
  for (const OptionInfo& option : options) {
    entries.push_back(Json{{"name", option.name},
                           {"type", option.type},
                           {"range", option.range},
                           {"default", option.fallback},
                           {"description", option.description}});
  }
  return entries;
}

/// Every plugin of that id ("awq" is an algorithm and a format), or the one of a path.
Result<std::vector<PluginInfo>> find(const PluginRegistry& registry, const std::string& name) {
  if (name.find('/') != std::string::npos || name.ends_with(".so")) {
    std::error_code error;
    const auto path = std::filesystem::canonical(name, error);
    if (error) return Status(Code::kInvalidArgument, "plugin " + name + ": " + error.message());
    return std::vector<PluginInfo>{read_plugin_info(path.string())};
  }
  std::vector<PluginInfo> found;
  std::vector<std::string> ids;
  for (const PluginInfo& info : registry.list()) {
    if (info.id == name && info.shadowed_by.empty()) found.push_back(info);
    ids.push_back(info.id);
  }
  if (!found.empty()) return found;
  return Status(Code::kInvalidArgument, "no plugin '" + name + "'" + did_you_mean(name, ids) +
                                            " (searched: " + join(registry.search_path(), ":") + ")");
}

Result<std::vector<OptionInfo>> options_of(PluginRegistry& registry, const PluginInfo& info) {
  SLIM_ASSIGN(const std::string schema, registry.options_schema(info.kind, info.path));
  return describe_options(info.id, schema);
}

/// Which operators a backend has kernels for; all others run on the core's reference kernels.
Status describe_kernels(PluginRegistry& registry, const PluginInfo& info, std::string& text, Json& json) {
  SLIM_ASSIGN(const auto backend, registry.backend(info.path));
  text += "  kernels of the slim:: operators:\n";
  json = Json::object();
  for (const std::string& op : ops::operator_names()) {
    const bool own = backend->accelerates(op);
    text += "    " + padded(op, 18) + (own ? "own" : "reference") + "\n";
    json[op] = own ? "own" : "reference";
  }
  return {};
}

int info(PluginRegistry& registry, const std::string& name, bool json) {
  const auto found = find(registry, name);
  if (!found.ok()) return fail(found.status());
  std::string text;
  Json entries = Json::array();
  for (const PluginInfo& plugin : *found) {
    text += describe(plugin);
    Json entry = to_json(plugin);
    if (plugin.compatible.ok()) {
      const auto options = options_of(registry, plugin);
      if (!options.ok()) return fail(options.status());
      text += describe(*options);
      entry["options"] = to_json(*options);
      if (plugin.kind == SLIM_BACKEND) {
        const Status status = describe_kernels(registry, plugin, text, entry["kernels"]);
        if (!status.ok()) return fail(status);
      }
    }
    entries.push_back(std::move(entry));
  }
  return print(json ? dump(entries) : text);
}

int run_list(const Arguments& arguments) {
  const auto dirs = plugin_dirs(arguments);
  if (!dirs.ok()) return fail(dirs.status());
  if (arguments.positional().size() > 1)
    return fail(Status(Code::kInvalidArgument, "unexpected argument '" + arguments.positional()[1] + "'"));
  return list(PluginRegistry(*dirs), arguments.has("json"));
}

int run_info(const Arguments& arguments) {
  const auto dirs = plugin_dirs(arguments);
  if (!dirs.ok()) return fail(dirs.status());
  if (arguments.positional().size() != 2)
    return fail(Status(Code::kInvalidArgument, "expected `slim plugins info NAME`"));
  PluginRegistry registry(*dirs);
  return info(registry, arguments.positional()[1], arguments.has("json"));
}

/// What follows `slim plugins`.
struct Action {
  std::string name;
  std::vector<Flag> flags;  ///< besides the common ones
  int (*run)(const Arguments&);
};

const std::vector<Action>& actions() {
  static const std::vector<Action> all = {{"list", {}, &run_list},
                                          {"info", {}, &run_info},
                                          {"new", new_plugin_flags(), &new_plugin},
                                          {"validate", validate_plugin_flags(), &validate_plugin}};
  return all;
}

int run_plugins(const Arguments& arguments) {
  const std::string name = arguments.positional().empty() ? "" : arguments.positional()[0];
  const Action* action = nullptr;
  std::vector<std::string> names;
  for (const Action& candidate : actions()) {
    if (candidate.name == name) action = &candidate;
    names.push_back(candidate.name);
  }
  if (!action) {
    return fail(Status(Code::kInvalidArgument, "expected `slim plugins " + join(names, " | ") + "`" +
                                                   (name.empty() ? "" : did_you_mean(name, names))));
  }
  for (const Action& other : actions()) {
    for (const Flag& flag : other.flags) {
      if (&other != action && arguments.has(flag.name)) {
        return fail(Status(Code::kInvalidArgument,
                           "--" + flag.name + " belongs to `slim plugins " + other.name + "`"));
      }
    }
  }
  return action->run(arguments);
}

}  // namespace

Command plugins_command() {
  std::vector<Flag> flags;
  for (const Action& action : actions()) flags = flags + action.flags;
  return {"plugins", "plugins list | info NAME | new KIND NAME | validate FILE",
          "the plugins that are found; the options of one; a template for a new one; a plugin's tests",
          flags + common_flags(), &run_plugins};
}

}  // namespace slim::cli
