#pragma once
#include "cli.h"

namespace slim::cli {

/// `slim plugins new KIND NAME [--dir DIR]`: a folder with a plugin that builds and works.
int new_plugin(const Arguments&);
/// `slim plugins validate FILE`: the conformance kit.
int validate_plugin(const Arguments&);
std::vector<Flag> new_plugin_flags();
std::vector<Flag> validate_plugin_flags();

}  // namespace slim::cli
