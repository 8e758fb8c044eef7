#pragma once
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plugin/registry.h"

/// Finding plugin files and reading what they say, without running any of their code.
namespace slim {

/// "algorithm", "adapter", "backend", "format", and back.
SLIM_API std::string kind_name(slim_kind);
std::optional<slim_kind> kind_from_name(std::string_view);

/// Where plugins are looked for, in order, as absolute paths without duplicates.
std::vector<std::string> plugin_search_path(const std::vector<std::string>& plugin_dirs);
/// The kind and id in a file name libslim_KIND_ID.so; '_' of the id may stand for '-'.
std::optional<std::pair<slim_kind, std::string>> parse_plugin_file_name(const std::string& path);
/// One file. A file that cannot be read, or that this host cannot load, has a reason in `compatible`.
SLIM_API PluginInfo read_plugin_info(const std::string& path);
/// Every libslim_*.so of the folders, in their order; shadowed ones are marked.
std::vector<PluginInfo> scan_plugins(const std::vector<std::string>& folders);

}  // namespace slim
