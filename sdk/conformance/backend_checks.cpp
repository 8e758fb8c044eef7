// A backend's devices, and its kernels against the reference kernels.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <functional>

#include "check.h"
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
    const bool sound = !device.name.empty() && device.total_bytes > 0 && device.free_bytes >= 0 && device.free_bytes <= device.total_bytes;
    if (!sound) return failure("device '" + device.name + "': its name or its memory (" + std::to_string(device.free_bytes) + " of " +
                               std::to_string(device.total_bytes) + " bytes free) makes no sense");
  }
  return Outcome{false, std::to_string(found.size()) + " devices, the first " + found.front().name};
}

/// One kernel at work: its inputs are made on the host and moved, what it wrote comes back.
using Work = std::function<std::vector<at::Tensor>(at::Device, at::ScalarType, const at::Generator&)>;

std::vector<at::Tensor> gram(at::Device device, at::ScalarType dtype, const at::Generator& generator) {
  const at::Tensor x = at::randn({200, 96}, generator).to(dtype).to(device);
  const at::Tensor sum = at::ones({96, 96}).to(device);
  ops::gram_(sum, x);
  return {sum.cpu()};
}

std::vector<at::Tensor> moments(at::Device device, at::ScalarType dtype, const at::Generator& generator) {
  const at::Tensor x = at::randn({200, 96}, generator).to(dtype).to(device);
  std::vector<at::Tensor> sums;
  for (int i = 0; i < 4; ++i) sums.push_back(at::zeros({96}).to(device));
  ops::channel_moments_(sums[0], sums[1], sums[2], sums[3], x);
  for (at::Tensor& sum : sums) sum = sum.cpu();
  return sums;
}

std::vector<at::Tensor> sweep(at::Device device, at::ScalarType, const at::Generator& generator) {
  const at::Tensor weight = at::randn({24, 64}, generator).to(device), errors = at::zeros({24, 64}).to(device);
  const at::Tensor codes = at::zeros({24, 64}, at::kChar).to(device);
  const at::Tensor factor = (at::randn({64, 64}, generator) * 0.05 + at::eye(64)).triu().contiguous().to(device);
  const at::Tensor scale = at::full({24, 2}, 0.25).to(device), group = at::arange(64, at::kInt).div(32, "floor").to(at::kInt).to(device);
  ops::column_sweep_(weight, errors, codes, factor, scale, std::nullopt, group, -8, 7, 0, 0);
  return {weight.cpu(), errors.cpu(), codes.to(at::kFloat).cpu()};
}

struct Kernel {
  std::string op;
  std::vector<at::ScalarType> dtypes;
  Work work;
};

const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> all = {{"gram_", {at::kFloat, at::kBFloat16, at::kHalf}, &gram},
                                          {"channel_moments_", {at::kFloat, at::kBFloat16, at::kHalf}, &moments},
                                          {"column_sweep_", {at::kFloat}, &sweep}};
  return all;
}

std::vector<std::vector<at::Tensor>> results(at::Device device, uint64_t seed) {
  std::vector<std::vector<at::Tensor>> all;
  for (const Kernel& kernel : kernels()) {
    for (const at::ScalarType dtype : kernel.dtypes) all.push_back(kernel.work(device, dtype, at::detail::createCPUGenerator(seed)));
  }
  return all;
}

/// Squared error over squared values.
double normalized_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).square().sum() / b.square().sum().clamp_min(1e-20)).item<double>();
}

Result<Outcome> reference(const Subject& subject) {
  const auto expected = results(at::kCPU, subject.seed);  // before the plugin's kernels are there
  PluginRegistry registry;
  auto backend = open(subject, registry);
  if (no_device(backend.status())) return skipped("no device here: " + backend.status().message());
  if (!backend.ok()) return backend.status();
  const auto found = results(at::Device((*backend)->device_type()), subject.seed);
  std::vector<std::string> lines;
  size_t i = 0;
  for (const Kernel& kernel : kernels()) {
    for (const at::ScalarType dtype : kernel.dtypes) {
      double error = 0;
      for (size_t output = 0; output < expected[i].size(); ++output) error = std::max(error, normalized_error(found[i][output], expected[i][output]));
      char text[128];
      std::snprintf(text, sizeof text, "%s %s %.1e%s", kernel.op.c_str(), c10::toString(dtype), error,
                    (*backend)->accelerates(kernel.op) ? "" : " (reference)");
      constexpr double kBound = 1e-9;  // fp32 sums in another order
      if (!(error <= kBound)) return failure(std::string(text) + ": normalized squared error above 1e-9");
      lines.emplace_back(text);
      ++i;
    }
  }
  return Outcome{false, join(lines)};
}

bool has_kernel(const std::string& op, c10::DeviceType type) {
  const auto key = type == c10::DeviceType::CPU ? c10::DispatchKey::CPU
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
  for (const Kernel& kernel : kernels()) {
    const bool there = has_kernel(kernel.op, backend->device_type()), said = backend->accelerates(kernel.op);
    if (there != said) return failure("accelerates(\"" + kernel.op + "\") is " + (said ? "true" : "false") + ", a kernel of its own is " + (there ? "there" : "not there"));
    if (there) own.push_back(kernel.op);
  }
  if (backend->accelerates("no_such_op")) return failure("accelerates() is true of an operator that does not exist");
  return Outcome{false, own.empty() ? "the reference kernels alone" : "kernels of its own: " + join(own)};
}

}  // namespace

std::vector<Check> backend_checks() {
  return {{"backend/devices", "it opens and lists its devices with their memory", &devices},
          {"backend/reference", "every kernel gives what the reference kernel gives", &reference},
          {"backend/accelerates", "accelerates() says what is registered", &says_what_it_has}};
}

}  // namespace slim::conformance
