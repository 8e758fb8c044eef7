#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "slim/abi.h"
#include "slim/adapter.hpp"
#include "slim/algorithm.hpp"
#include "slim/backend.hpp"
#include "slim/format.hpp"

namespace slim {

/// What a plugin file says of itself in its ELF section; read without running any of its code.
struct PluginInfo {
  slim_kind kind = SLIM_ALGORITHM;
  std::string id, summary, serves, name, version, vendor, license, api, torch, compiler, build_tag, interface,
      claims, path;
  int score = 0;            ///< of a backend: SLIM_PLUGIN_SCORE
  Status compatible;        ///< ok, or why this host cannot load it (both sides and the remedy)
  std::string shadowed_by;  ///< path of the file that is found first, or empty
};

/// A plugin's object, destroyed by the module that made it. Plugins are never unloaded.
template <class T>
using Owned = std::unique_ptr<T, std::function<void(T*)>>;

/// Finds, checks, loads and instantiates plugins. An object, not a global: two may coexist. Used from one thread.
/// Search order: a path given as the name, `plugin_dirs`, SLIM_PLUGIN_PATH, $XDG_DATA_HOME/slim/plugins, and slim/plugins
/// beside libslim_core.so; never the current directory.
class SLIM_API PluginRegistry {
 public:
  explicit PluginRegistry(std::vector<std::string> plugin_dirs = {});
  ~PluginRegistry();

  const std::vector<std::string>& search_path() const;
  /// Every plugin file on the search path, shadowed and incompatible ones included.
  std::vector<PluginInfo> list() const;
  /// By id ("awq") or path. kInvalidArgument names the nearest id and the search path.
  Result<PluginInfo> find(slim_kind, const std::string& name) const;
  /// The adapter that serves a model_type; kNotFound lists the adapters and what they serve.
  Result<PluginInfo> adapter_for(const std::string& model_type) const;
  /// The format that claims a scheme, by name or as one that takes all; kNotFound: none does.
  Result<PluginInfo> format_for(const std::string& scheme) const;
  /// The backends that "auto" may open, the highest score first.
  std::vector<PluginInfo> backends_by_score() const;

  Result<Owned<Algorithm>> algorithm(const std::string& name);
  Result<Owned<ModelAdapter>> adapter(const std::string& name);
  Result<Owned<Backend>> backend(const std::string& name);
  Result<Owned<Format>> format(const std::string& name);
  /// The plugin's JSON Schema of options (loads it).
  Result<std::string> options_schema(slim_kind, const std::string& name);
  /// Checks raw options against the schema and fills in defaults.
  Result<Options> checked_options(slim_kind, const std::string& name, const Options& raw);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slim
