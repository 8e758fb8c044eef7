// A backend's devices, and its kernels against the reference kernels.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "check.h"
#include "op_table.h"
#include "plugin/guard.h"
#include "slim/ops.hpp"
#include "util/nearest.h"

namespace slim::conformance {
namespace {

Result<Owned<Backend>> open(const Subject& subject, PluginRegistry& registry) {
  SLIM_ASSIGN(Owned<Backend> backend, registry.backend(subject.info.path));
  SLIM_ASSIGN(const Options options, registry.checked_options(SLIM_BACKEND, subject.info.path, {}));
  SLIM_TRY(guarded("open", [&] { return backend->open(options); }));
  return backend;
}

Result<Outcome> devices(const Subject& subject) {
  PluginRegistry registry;
  auto backend = open(subject, registry);
  if (no_device(backend.status())) return skipped("no device here: " + backend.status().message());
  if (!backend.ok()) return backend.status();
  SLIM_ASSIGN(const auto found, guarded("devices", [&] { return (*backend)->devices(); }));
  if (found.empty()) return failure("open() succeeds, but there is no device");
  for (const DeviceInfo& device : found) {
    const bool sound = !device.name.empty() && device.total_bytes > 0 && device.free_bytes >= 0 &&
                       device.free_bytes <= device.total_bytes;
    if (!sound)
      return failure("device '" + device.name + "': its name or its memory (" +
                     std::to_string(device.free_bytes) + " of " + std::to_string(device.total_bytes) +
                     " bytes free) makes no sense");
  }
  return Outcome{false, std::to_string(found.size()) + " devices, the first " + found.front().name};
}

/// One operator over all of its cases.
struct Comparison {
  int cases = 0;
  double worst = 0;
};

std::string line_of(const std::string& op, const Comparison& comparison, bool has_kernel) {
  char text[128];
  std::snprintf(text, sizeof text, "%s %.1e in %d cases%s", op.c_str(), comparison.worst, comparison.cases,
                has_kernel ? "" : " (reference)");
  return text;
}

Result<Outcome> reference(const Subject& subject) {
  const std::vector<op_table::Case> cases = op_table::table(subject.seed);
  const auto expected = op_table::expected(cases);
  PluginRegistry registry;
  auto backend = open(subject, registry);
  if (no_device(backend.status())) return skipped("no device here: " + backend.status().message());
  if (!backend.ok()) return backend.status();
  const at::Device device((*backend)->device_type());
  std::map<std::string, Comparison> comparisons;
  for (size_t i = 0; i < cases.size(); ++i) {
    const op_table::Case& test = cases[i];
    SLIM_ASSIGN(const auto found,
                guarded(test.op + " (" + test.variant + ")",
                        [&]() -> Result<std::vector<at::Tensor>> { return test.run(device); }));
    const double difference = op_table::difference(expected[i], found),
                 bound = op_table::bound_on(test, device, (*backend)->accelerates(test.op));
    if (!(difference <= bound)) {
      char text[96];
      std::snprintf(text, sizeof text,
                    ": differs from the reference kernel by %.1e of its largest value; allowed are %.0e",
                    difference, bound);
      return failure(test.op + " (" + test.variant + ")" + text);
    }
    Comparison& comparison = comparisons[test.op];
    ++comparison.cases;
    comparison.worst = std::max(comparison.worst, difference);
  }
  std::vector<std::string> lines;
  for (const auto& [op, comparison] : comparisons)
    lines.push_back(line_of(op, comparison, (*backend)->accelerates(op)));
  return Outcome{false, "differences: " + join(lines)};
}

bool has_kernel(const std::string& op, c10::DeviceType type) {
  const auto key = type == c10::DeviceType::CPU    ? c10::DispatchKey::CPU
                   : type == c10::DeviceType::CUDA ? c10::DispatchKey::CUDA
                                                   : c10::DispatchKey::PrivateUse1;
  const auto handle = c10::Dispatcher::singleton().findOp({"slim::" + op, ""});
  return handle && handle->hasKernelForDispatchKey(key);
}

Result<Outcome> says_what_it_has(const Subject& subject) {
  PluginRegistry registry;
  auto opened = open(subject, registry);  // kernels may be chosen for the device that is found
  if (no_device(opened.status())) return skipped("no device here: " + opened.status().message());
  if (!opened.ok()) return opened.status();
  const Owned<Backend> backend = *std::move(opened);
  std::vector<std::string> own;
  for (const std::string& op : ops::operator_names()) {
    const bool there = has_kernel(op, backend->device_type()), said = backend->accelerates(op);
    if (there != said)
      return failure("accelerates(\"" + op + "\") is " + (said ? "true" : "false") +
                     ", a kernel of its own is " + (there ? "there" : "not there"));
    if (there) own.push_back(op);
  }
  if (backend->accelerates("no_such_op"))
    return failure("accelerates() is true of an operator that does not exist");
  return Outcome{false, own.empty() ? "the reference kernels alone" : "kernels of its own: " + join(own)};
}

}  // namespace

std::vector<Check> backend_checks() {
  return {{"backend/devices", "it opens and lists its devices with their memory", &devices},
          {"backend/reference", "every kernel gives what the reference kernel gives", &reference},
          {"backend/accelerates", "accelerates() says what is registered", &says_what_it_has}};
}

}  // namespace slim::conformance
