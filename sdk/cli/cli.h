#pragma once
#include <functional>
#include <string>
#include <vector>

#include "commands/commands.h"
#include "flags.h"
#include "slim/status.hpp"

namespace slim::cli {

/// A command of the program.
struct Command {
  std::string name;     ///< empty: the main job
  std::string usage;    ///< "inspect DIR [--json]"
  std::string summary;  ///< one line
  std::vector<Flag> flags;
  int (*run)(const Arguments&);  ///< the exit code
};

const std::vector<Command>& commands();

// run_commands.cpp
Command quantize_command();
Command plan_command();
// model_commands.cpp
Command inspect_command();
Command eval_command();
Command verify_command();
// compress_command.cpp
Command compress_command();
// doctor_command.cpp
Command doctor_command();
// plugins_command.cpp
Command plugins_command();

/// The one folder that a command is about: `slim inspect DIR`.
Result<std::string> only_positional(const Arguments&, const std::string& what);
/// --plugin-dir, each an existing folder.
Result<std::vector<std::string>> plugin_dirs(const Arguments&);

/// Long work as all commands do it: with the plugins of --plugin-dir, progress on stderr, an end by a signal, and
/// the report on stdout. The exit code.
int run_reported(const Arguments&, const std::function<Result<Report>(PluginRegistry&, Progress&)>& work);

}  // namespace slim::cli
