#pragma once
#include <string>
#include <vector>

#include "plugin/registry.h"
#include "run/commands.h"

namespace slim {

/// What a machine has for slim, and what to do about each thing that is missing.
struct Finding {
  std::string subject, found;
  std::string advice;  ///< empty: nothing is wrong
};

/// Processor, memory, LibTorch, drivers, backends with their devices, and plugins. Looks, and changes nothing.
SLIM_API std::vector<Finding> examine(PluginRegistry&);
/// The same as text and JSON.
SLIM_API Report doctor(PluginRegistry&);

}  // namespace slim
