// The command line of slim: finds the command, parses its flags, and leaves the rest to it.
#include <torch/headeronly/version.h>

#include <algorithm>
#include <filesystem>

#include "cli.h"
#include "interrupt.h"
#include "output.h"
#include "plugin/guard.h"
#include "plugin/registry.h"
#include "progress.h"
#include "slim/abi.h"
#include "slim/export.hpp"
#include "slim/version.hpp"
#include "util/host_memory.h"
#include "util/nearest.h"

namespace slim::cli {

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {quantize_command(), plan_command(),   inspect_command(),
                                           eval_command(),     verify_command(), compress_command(),
                                           plugins_command(),  doctor_command()};
  return all;
}

Result<std::string> only_positional(const Arguments& arguments, const std::string& what) {
  const std::vector<std::string>& words = arguments.positional();
  if (words.empty()) return Status(Code::kInvalidArgument, what + " is missing");
  if (words.size() > 1) return Status(Code::kInvalidArgument, "unexpected argument '" + words[1] + "'");
  return words[0];
}

Result<std::vector<std::string>> plugin_dirs(const Arguments& arguments) {
  for (const std::string& folder : arguments.all("plugin-dir")) {
    std::error_code error;
    if (!std::filesystem::is_directory(folder, error)) {
      return Status(Code::kInvalidArgument, "--plugin-dir " + folder + ": no such folder");
    }
  }
  return arguments.all("plugin-dir");
}

int run_reported(const Arguments& arguments,
                 const std::function<Result<Report>(PluginRegistry&, Progress&)>& work) {
  const auto dirs = plugin_dirs(arguments);
  if (!dirs.ok()) return fail(dirs.status());
  PluginRegistry registry(*dirs);
  catch_interrupts(/*resumable=*/false);
  auto progress = make_progress(arguments.has("quiet"));
  const auto report = work(registry, *progress);
  progress.reset();  // ends its line before anything else is printed
  return print(report, arguments.has("json"));
}

namespace {

std::string version() {
  return "slim " SLIM_VERSION " (plugin API " + std::to_string(SLIM_API_MAJOR) + "." +
         std::to_string(SLIM_API_MINOR) + ", LibTorch " TORCH_VERSION ", " SLIM_BUILD_TAG ")\n";
}

std::string overview() {
  std::string text = "slim: compresses Hugging Face checkpoints\n\nusage:\n";
  for (const Command& command : commands()) {
    text += "  slim " + command.usage + "\n      " + command.summary + "\n";
  }
  text += "  slim help [COMMAND] | --version\n\n";
  return text + "options of the main job and of plan:\n" + flags_help(commands().front().flags) +
         "\nexit codes: 0 done, 1 failed, 2 wrong usage, 3 verification failed, 130 interrupted\n";
}

std::string help(const Command& command) {
  if (command.name.empty()) return overview();
  return "usage: slim " + command.usage + "\n" + command.summary + "\n\noptions:\n" +
         flags_help(command.flags);
}

Result<const Command*> find_command(const std::string& name) {
  std::vector<std::string> names = {"help", "quantize", "version"};
  for (const Command& command : commands()) {
    if (command.name == name) return &command;
    if (!command.name.empty()) names.push_back(command.name);
  }
  return Status(Code::kInvalidArgument, "unknown command '" + name + "'" + did_you_mean(name, names) +
                                            " (there are: " + join(names) +
                                            "; without one, slim --plugin ... compresses)");
}

int run_help(const std::vector<std::string>& words) {
  if (words.empty()) return print(overview());
  const auto command = find_command(words[0]);
  return command.ok() ? print(help(**command)) : fail(command.status());
}

int run_command(std::vector<std::string> words) {
  std::replace(words.begin(), words.end(), std::string("-h"), std::string("--help"));
  std::replace(words.begin(), words.end(), std::string("-q"), std::string("--quiet"));
  std::string name;
  if (words[0].empty() || words[0][0] != '-') {
    name = words[0];
    words.erase(words.begin());
  }
  if (name == "help") return run_help(words);
  if (name == "version" && words.empty()) return print(version());
  if (name == "quantize" || name == "quant") name.clear();  // the main job, as other tools call it
  const auto command = find_command(name);
  if (!command.ok()) return fail(command.status());
  const auto arguments = Arguments::parse((*command)->flags, words);
  if (!arguments.ok()) return fail(arguments.status());
  if (arguments->has("help")) return print(help(**command));
  return (*command)->run(*arguments);
}

int run(const std::vector<std::string>& words) {
  if (words.empty()) {
    std::fputs(overview().c_str(), stderr);
    return kUsage;
  }
  if (words == std::vector<std::string>{"--version"} || words == std::vector<std::string>{"-V"})
    return print(version());
  int code = kFailed;
  const Status status = guarded("internal error", [&]() -> Status {
    code = run_command(words);
    return {};
  });
  return status.ok() ? code : fail(status);
}

}  // namespace
}  // namespace slim::cli

/// What the program `slim` calls (launcher/launcher.cpp).
extern "C" SLIM_API int slim_main(int argc, char** argv) {
  slim::use_huge_recycled_memory(int64_t{512} << 20);
  return slim::cli::run({argv + 1, argv + argc});
}
