#include "plugin/registry.h"

#include <algorithm>
#include <boost/dll/shared_library.hpp>
#include <filesystem>
#include <map>
#include <mutex>
#include <utility>

#include "plugin/compatibility.h"
#include "plugin/guard.h"
#include "plugin/options_schema.h"
#include "plugin/scan.h"
#include "slim/scheme.hpp"
#include "util/nearest.h"

namespace slim {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDescriptor = "slim_plugin_v1";

/// Opens a library for good: code that used LibTorch cannot be unloaded, so the handles are leaked on purpose.
Result<const boost::dll::shared_library*> open_library(const std::string& path) {
  using boost::dll::load_mode::rtld_local;
  using boost::dll::load_mode::rtld_now;
  static auto* const handles = new std::vector<std::unique_ptr<boost::dll::shared_library>>();
  static std::mutex mutex;  // registries of several threads share the list
  auto library = std::make_unique<boost::dll::shared_library>();
  try {  // only the throwing form tells what the loader said
    library->load(path, rtld_now | rtld_local);
  } catch (const std::exception& e) {
    return Status(Code::kIncompatible, path + ": cannot be loaded: " + e.what());
  }
  const std::lock_guard lock(mutex);
  handles->push_back(std::move(library));
  return handles->back().get();
}

/// The descriptor of a file whose metadata has already been found compatible.
Result<const slim_plugin*> load_descriptor(const std::string& path) {
  SLIM_ASSIGN(const boost::dll::shared_library* const library, open_library(path));
  if (!library->has(kDescriptor)) {
    return Status(Code::kCorrupt,
                  path + ": broken plugin: it exports no " + kDescriptor + "; link it with slim_add_plugin");
  }
  const slim_plugin& plugin = library->get<const slim_plugin>(kDescriptor);
  SLIM_TRY(check_descriptor(plugin).in(path));
  SLIM_TRY(check_compatible(facts_of(plugin), host_facts()).in(path));
  return &plugin;
}

Result<const slim_component*> find_component(const slim_plugin& plugin, const PluginInfo& info) {
  for (uint32_t i = 0; i < plugin.n_components; ++i) {
    const slim_component& component = component_at(plugin, i);
    if (component.kind == static_cast<uint32_t>(info.kind) && component.id == info.id) return &component;
  }
  return Status(Code::kCorrupt, info.path + ": broken plugin: its section slim_meta promises the " +
                                    kind_name(info.kind) + " '" + info.id + "', its descriptor has none");
}

/// The object of a component, or why there is none.
Result<void*> create_object(const slim_component& component, const std::string& where) {
  return guarded(where, [&]() -> Result<void*> {
    slim_error error{};
    void* object = component.create(nullptr, &error);
    if (object) return object;
    error.message[sizeof error.message - 1] = '\0';
    const bool known = error.code > 0 && error.code <= static_cast<int32_t>(Code::kInternal);
    const std::string message =
        error.message[0] ? error.message : "its factory returned neither an object nor an error";
    return Status(known ? static_cast<Code>(error.code) : Code::kInternal, "cannot be created: " + message);
  });
}

bool is_path(const std::string& name) { return name.find('/') != std::string::npos || name.ends_with(".so"); }

std::vector<std::string> ids_of(const std::vector<PluginInfo>& plugins, slim_kind kind) {
  std::vector<std::string> ids;
  for (const PluginInfo& info : plugins) {
    if (info.kind == kind && info.shadowed_by.empty()) ids.push_back(info.id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

Result<PluginInfo> find_path(slim_kind kind, const std::string& name) {
  std::error_code error;
  const fs::path path = fs::canonical(name, error);
  if (error) return Status(Code::kInvalidArgument, "plugin " + name + ": " + error.message());
  PluginInfo info = read_plugin_info(path.string());
  if (info.compatible.ok() && info.kind != kind) {
    return Status(Code::kInvalidArgument, name + ": holds the " + kind_name(info.kind) + " '" + info.id +
                                              "', expected an " + kind_name(kind));
  }
  return info;
}

/// A file that cannot be read has no metadata, only an id guessed from its name, where '-' became '_'.
bool has_id(const PluginInfo& info, const std::string& id) {
  if (info.id == id) return true;
  if (!info.name.empty()) return false;
  std::string file_id = id;
  std::replace(file_id.begin(), file_id.end(), '-', '_');
  return info.id == file_id;
}

/// True if a list "a,b" has the entry.
bool lists(const std::string& list, const std::string& entry) {
  return ("," + list + ",").find("," + entry + ",") != std::string::npos;
}

bool serves(const PluginInfo& info, const std::string& model_type) { return lists(info.serves, model_type); }

bool usable(const PluginInfo& info, slim_kind kind) {
  return info.kind == kind && info.shadowed_by.empty() && info.compatible.ok();
}

}  // namespace

struct PluginRegistry::State {
  std::vector<std::string> search_path;
  std::map<std::string, const slim_plugin*> loaded;  ///< by canonical path

  Result<const slim_plugin*> load(const PluginInfo& info) {
    SLIM_TRY(Status(info.compatible));
    std::error_code error;
    const std::string path = fs::canonical(info.path, error).string();
    if (error) return Status(Code::kIo, info.path + ": " + error.message());
    if (const auto found = loaded.find(path); found != loaded.end()) return found->second;
    SLIM_ASSIGN(const slim_plugin* const plugin, load_descriptor(path));
    loaded.emplace(path, plugin);
    return plugin;
  }
};

PluginRegistry::PluginRegistry(std::vector<std::string> plugin_dirs) : state_(std::make_unique<State>()) {
  state_->search_path = plugin_search_path(plugin_dirs);
}
PluginRegistry::~PluginRegistry() = default;

const std::vector<std::string>& PluginRegistry::search_path() const { return state_->search_path; }

std::vector<PluginInfo> PluginRegistry::list() const { return scan_plugins(state_->search_path); }

Result<PluginInfo> PluginRegistry::find(slim_kind kind, const std::string& name) const {
  if (is_path(name)) return find_path(kind, name);
  const std::vector<PluginInfo> plugins = list();
  for (const PluginInfo& info : plugins) {
    if (info.kind == kind && has_id(info, name)) return info;
  }
  const std::vector<std::string> ids = ids_of(plugins, kind);
  const std::vector<std::string> schemes = scheme_names();
  const bool scheme =
      kind == SLIM_ALGORITHM && std::find(schemes.begin(), schemes.end(), name) != schemes.end();
  return Status(Code::kInvalidArgument,
                "no " + kind_name(kind) + " plugin '" + name + "'" +
                    (scheme ? ", which is a scheme: pass --scheme " + name + ", and an algorithm to --plugin"
                            : did_you_mean(name, ids)) +
                    " (found: " + (ids.empty() ? "none" : join(ids)) +
                    "; searched: " + join(state_->search_path, ":") + ")");
}

Result<PluginInfo> PluginRegistry::adapter_for(const std::string& model_type) const {
  std::vector<std::string> known;
  const PluginInfo* unusable = nullptr;
  const std::vector<PluginInfo> plugins = list();
  for (const PluginInfo& info : plugins) {
    if (info.kind != SLIM_ADAPTER || !info.shadowed_by.empty()) continue;
    if (serves(info, model_type) && info.compatible.ok()) return info;
    if (serves(info, model_type)) unusable = &info;
    known.push_back(info.id + " (" +
                    (info.compatible.ok() ? info.serves : "cannot be loaded: " + info.compatible.message()) +
                    ")");
  }
  if (unusable) return unusable->compatible;
  return Status(Code::kNotFound, "no adapter serves model_type '" + model_type +
                                     "'; there are: " + (known.empty() ? "none" : join(known)) +
                                     "; searched: " + join(state_->search_path, ":") +
                                     "; if one of them fits all the same, name it with --adapter");
}

Result<PluginInfo> PluginRegistry::format_for(const std::string& scheme) const {
  const std::vector<PluginInfo> plugins = list();
  for (const std::string& claim : {scheme, std::string("*")}) {
    for (const PluginInfo& info : plugins) {
      if (usable(info, SLIM_FORMAT) && lists(info.claims, claim)) return info;
    }
  }
  return Status(Code::kNotFound,
                "no format plugin claims scheme '" + scheme +
                    "'; name one with --format (there are: " + join(ids_of(plugins, SLIM_FORMAT)) + ")");
}

std::vector<PluginInfo> PluginRegistry::backends_by_score() const {
  std::vector<PluginInfo> backends;
  for (PluginInfo& info : list()) {
    if (usable(info, SLIM_BACKEND) && info.score > 0) backends.push_back(std::move(info));
  }
  std::stable_sort(backends.begin(), backends.end(),
                   [](const PluginInfo& a, const PluginInfo& b) { return a.score > b.score; });
  return backends;
}

namespace {

/// An object of the plugin's interface, destroyed by the plugin itself.
template <class T>
Result<Owned<T>> instantiate(const slim_plugin& plugin, const PluginInfo& info) {
  SLIM_ASSIGN(const slim_component* const component, find_component(plugin, info));
  const std::string where = kind_name(info.kind) + " '" + info.id + "' (" + info.path + ")";
  SLIM_ASSIGN(void* const object, create_object(*component, where));
  return Owned<T>(static_cast<T*>(object), [destroy = component->destroy](T* p) { destroy(p); });
}

}  // namespace

Result<Owned<Algorithm>> PluginRegistry::algorithm(const std::string& name) {
  SLIM_ASSIGN(const PluginInfo info, find(SLIM_ALGORITHM, name));
  SLIM_ASSIGN(const slim_plugin* const plugin, state_->load(info));
  return instantiate<Algorithm>(*plugin, info);
}

Result<Owned<ModelAdapter>> PluginRegistry::adapter(const std::string& name) {
  SLIM_ASSIGN(const PluginInfo info, find(SLIM_ADAPTER, name));
  SLIM_ASSIGN(const slim_plugin* const plugin, state_->load(info));
  return instantiate<ModelAdapter>(*plugin, info);
}

Result<Owned<Backend>> PluginRegistry::backend(const std::string& name) {
  SLIM_ASSIGN(const PluginInfo info, find(SLIM_BACKEND, name));
  SLIM_ASSIGN(const slim_plugin* const plugin, state_->load(info));
  return instantiate<Backend>(*plugin, info);
}

Result<Owned<Format>> PluginRegistry::format(const std::string& name) {
  SLIM_ASSIGN(const PluginInfo info, find(SLIM_FORMAT, name));
  SLIM_ASSIGN(const slim_plugin* const plugin, state_->load(info));
  return instantiate<Format>(*plugin, info);
}

Result<std::string> PluginRegistry::options_schema(slim_kind kind, const std::string& name) {
  SLIM_ASSIGN(const PluginInfo info, find(kind, name));
  SLIM_ASSIGN(const slim_plugin* const plugin, state_->load(info));
  SLIM_ASSIGN(const slim_component* const component, find_component(*plugin, info));
  return std::string(component->options_schema);
}

Result<Options> PluginRegistry::checked_options(slim_kind kind, const std::string& name, const Options& raw) {
  SLIM_ASSIGN(const PluginInfo info, find(kind, name));
  SLIM_ASSIGN(const std::string schema, options_schema(kind, name));
  return check_options(info.id, schema, raw);
}

}  // namespace slim
