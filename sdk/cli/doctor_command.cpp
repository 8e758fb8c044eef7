// slim doctor
#include "cli.h"
#include "commands/doctor.h"
#include "output.h"

namespace slim::cli {
namespace {

int run_doctor(const Arguments& arguments) {
  const auto dirs = plugin_dirs(arguments);
  if (!dirs.ok()) return fail(dirs.status());
  if (!arguments.positional().empty()) {
    return fail(Status(Code::kInvalidArgument, "unexpected argument '" + arguments.positional()[0] + "'"));
  }
  PluginRegistry registry(*dirs);
  return print(report_of(examine(registry)), arguments.has("json"));
}

}  // namespace

Command doctor_command() {
  return {"doctor", "doctor [--json]",
          "what this machine has: processor, devices, drivers, plugins; what to do about what is missing",
          common_flags(), &run_doctor};
}

}  // namespace slim::cli
