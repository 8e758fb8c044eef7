#include <fstream>
#include <sstream>

#include "slim/plugin.hpp"

namespace {
using namespace slim;

/// A line of /proc/meminfo in bytes: "MemAvailable:   16332456 kB".
Result<int64_t> memory(std::string_view field) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, unit;
    int64_t kilobytes = 0;
    if (words >> name >> kilobytes >> unit && name == std::string(field) + ":" && unit == "kB")
      return kilobytes * 1024;
  }
  return Status(Code::kIo, "/proc/meminfo has no line " + std::string(field) + "; is /proc mounted?");
}

std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "cpu";
}

/// The host's processors. Runs on the core's own kernels.
class CpuBackend final : public Backend {
 public:
  c10::DeviceType device_type() const override { return c10::DeviceType::CPU; }
  Status open(const Options&) override { return {}; }
  Result<std::vector<DeviceInfo>> devices() const override {
    DeviceInfo info;
    info.name = model_name();
    SLIM_ASSIGN(info.total_bytes, memory("MemTotal"));
    SLIM_ASSIGN(info.free_bytes, memory("MemAvailable"));
    return std::vector<DeviceInfo>{info};
  }
  bool accelerates(std::string_view) const override { return false; }
  void synchronize(c10::Device) override {}  // the CPU runs in order
};
}  // namespace
SLIM_BACKEND_PLUGIN("cpu", CpuBackend, "The host's processors", "{}")
