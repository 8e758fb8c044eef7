#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "commands/commands.h"
#include "plugin/registry.h"

namespace slim {

/// What a machine has for slim, and what to do about each thing that is missing.
struct Finding {
  std::string subject, found;
  std::string advice;  ///< empty: nothing is wrong
};

/// Processor, memory, LibTorch, drivers, backends with their devices, and plugins. Looks, and changes nothing. `root`: the folder that holds
/// proc/ and dev/.
SLIM_API std::vector<Finding> examine(PluginRegistry&, const std::filesystem::path& root = "/");
/// The part of it about these plugins: every backend is opened; a kind of which there is none is missed.
SLIM_API std::vector<Finding> examine_plugins(PluginRegistry&, const std::vector<PluginInfo>& plugins);
/// Findings as text, a line each with the advice below it, and as JSON.
SLIM_API Report report_of(const std::vector<Finding>&);

}  // namespace slim
