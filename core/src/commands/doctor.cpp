#include "commands/doctor.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <dlfcn.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "plugin/guard.h"
#include "report/notes.h"
#include "slim/ops.hpp"

namespace slim {
namespace {

namespace fs = std::filesystem;

/// What follows the colon of the first line that starts with `key`; empty without one.
std::string line_of(const fs::path& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

/// Bytes of a line such as "MemTotal:  16332456 kB"; 0 without one.
double bytes_of(const fs::path& file, const std::string& key) {
  std::istringstream words(line_of(file, key));
  double kilobytes = 0;
  words >> kilobytes;
  return kilobytes * 1024;
}

std::string gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GB", bytes / 1e9);
  return text;
}

Finding processor(const fs::path& root) {
  const fs::path file = root / "proc/cpuinfo";
  const std::string model = line_of(file, "model name");
  std::istringstream words(line_of(file, "flags"));
  const std::set<std::string> flags{std::istream_iterator<std::string>(words), {}};
  std::string features;
  for (const char* flag : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16",
                           "avx512_vnni", "amx_bf16", "amx_int8"}) {
    if (flags.contains(flag)) features += std::string(features.empty() ? "" : " ") + flag;
  }
  Finding finding{"processor",
                  (model.empty() ? "unknown" : model) + ", " + std::to_string(at::get_num_threads()) +
                      " threads" + (features.empty() ? "" : ", " + features),
                  ""};
#if defined(__x86_64__)
  if (flags.empty()) {
    finding.advice = file.string() +
                     " cannot be read, so that its features are not known here; mount /proc. Kernels ask the "
                     "processor itself";
  } else if (!flags.contains("avx2") || !flags.contains("fma")) {
    finding.advice =
        "without AVX2 and FMA only the portable kernels run: a newer processor is several times faster";
  }
#endif
  return finding;
}

Finding products() {
  return {"products",
          ops::product_text(at::kBFloat16, at::kCPU) + "; " + ops::product_text(at::kHalf, at::kCPU), ""};
}

Finding memory(const fs::path& root) {
  constexpr double kLittle = 4e9;
  const fs::path file = root / "proc/meminfo";
  const double total = bytes_of(file, "MemTotal"), available = bytes_of(file, "MemAvailable");
  if (total <= 0)
    return {"memory", "unknown", file.string() + " cannot be read; mount /proc: backend cpu asks it, too"};
  Finding finding{"memory", gigabytes(available) + " of " + gigabytes(total) + " available", ""};
  if (available < kLittle)
    finding.advice =
        "close other programs, or give smaller batches (--batch-size, --max-seq-length); `slim plan` tells "
        "what a run needs";
  return finding;
}

Finding libtorch() {
  Dl_info where{};
  ::dladdr(reinterpret_cast<const void*>(&at::get_num_threads), &where);
  return {"LibTorch",
          std::string(TORCH_VERSION) + (where.dli_fname ? std::string(", ") + where.dli_fname : ""), ""};
}

Finding nvidia_driver(const fs::path& root) {
  std::ifstream version(root / "proc/driver/nvidia/version");
  std::string line;
  if (std::getline(version, line)) return {"NVIDIA driver", line, ""};
  return {"NVIDIA driver", "none",
          "for --backend cuda on a machine with an NVIDIA GPU: install its driver (nvidia-smi then lists the "
          "GPU)"};
}

Finding ascend_driver(const fs::path& root) {
  std::error_code ignored;
  for (const char* device : {"dev/davinci0", "dev/davinci_manager"}) {
    if (fs::exists(root / device, ignored)) return {"Ascend driver", (root / device).string(), ""};
  }
  return {"Ascend driver", "none",
          "for --backend npu on a machine with an Ascend NPU: install driver, firmware and CANN (npu-smi "
          "info then lists the NPU)"};
}

Finding backend_finding(const PluginInfo& info, PluginRegistry& registry) {
  Finding finding{"backend " + info.id, "", ""};
  const auto fail = [&](const Status& status) {
    finding.found = "not usable";
    finding.advice = status.message();
    return finding;
  };
  if (!info.compatible.ok()) return fail(info.compatible);
  Result<Owned<Backend>> backend = registry.backend(info.id);
  if (!backend.ok()) return fail(backend.status());
  if (Status status = guarded("backend " + info.id, [&] { return (*backend)->open({}); }); !status.ok())
    return fail(status);
  const auto devices = guarded("backend " + info.id, [&] { return (*backend)->devices(); });
  if (!devices.ok()) return fail(devices.status());
  if (devices->empty())
    return fail({Code::kNotFound,
                 "it opens, but lists no device; `slim plugins validate " + info.path + "` examines it"});
  for (const DeviceInfo& device : *devices) {
    finding.found += (finding.found.empty() ? "" : "; ") + device.name + ", " +
                     gigabytes(static_cast<double>(device.free_bytes)) + " of " +
                     gigabytes(static_cast<double>(device.total_bytes)) + " free";
  }
  return finding;
}

}  // namespace

std::vector<Finding> examine_plugins(PluginRegistry& registry, const std::vector<PluginInfo>& plugins) {
  std::vector<Finding> findings;
  std::map<std::string, std::string> by_kind;
  const std::map<slim_kind, const char*> names = {
      {SLIM_ALGORITHM, "algorithms"}, {SLIM_ADAPTER, "adapters"}, {SLIM_FORMAT, "formats"}};
  const std::string searched =
      "searched were the folders that `slim plugins list` shows; reinstall slim, or pass --plugin-dir";
  for (const auto& [kind, name] : names) by_kind[name];
  bool has_backend = false;
  for (const PluginInfo& info : plugins) {
    if (!info.shadowed_by.empty()) continue;
    if (info.kind == SLIM_BACKEND) {
      findings.push_back(backend_finding(info, registry));
      has_backend = true;
    } else if (!info.compatible.ok()) {
      findings.push_back({"plugin " + info.id, info.path, info.compatible.message()});
    } else {
      std::string& list = by_kind[names.at(info.kind)];
      list += (list.empty() ? "" : ", ") + info.id;
    }
  }
  if (!has_backend) findings.push_back({"backends", "none", searched});
  for (const auto& [name, list] : by_kind) {
    findings.push_back({name, list.empty() ? "none" : list, list.empty() ? searched : ""});
  }
  return findings;
}

std::vector<Finding> examine(PluginRegistry& registry, const fs::path& root) {
  std::vector<Finding> findings = {processor(root), products(),          memory(root),
                                   libtorch(),      nvidia_driver(root), ascend_driver(root)};
  std::vector<Finding> plugins = examine_plugins(registry, registry.list());
  findings.insert(findings.end(), std::make_move_iterator(plugins.begin()),
                  std::make_move_iterator(plugins.end()));
  return findings;
}

Report report_of(const std::vector<Finding>& findings) {
  Report report;
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Finding& finding : findings) {
    report.text += finding.subject + ": " + finding.found + "\n";
    if (!finding.advice.empty()) report.text += "    " + finding.advice + "\n";
    json.push_back({{"subject", finding.subject}, {"found", finding.found}, {"advice", finding.advice}});
  }
  report.json = nlohmann::ordered_json{{"findings", json}}.dump(
      2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  return report;
}

}  // namespace slim
