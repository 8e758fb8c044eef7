#include <algorithm>
#include <fstream>
#include <sstream>

#include "ops.h"
#define SLIM_PLUGIN_SCORE 10
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

constexpr char kSchema[] = R"json({"type":"object","properties":{
  "instructions":{"type":"string","enum":["auto","avx512","avx2","portable"],"default":"auto",
                  "description":"instruction set of the kernels; auto: the best that the processor has"}}})json";

/// The host's processors.
class CpuBackend final : public Backend {
 public:
  c10::DeviceType device_type() const override { return c10::DeviceType::CPU; }
  Status open(const Options& options) override {
    const std::vector<std::string> sets = cpu::instruction_sets();
    const auto wanted = options.find("instructions");
    const std::string set =
        wanted == options.end() || wanted->second == "auto" ? sets.front() : wanted->second;
    if (std::find(sets.begin(), sets.end(), set) == sets.end()) {
      return {Code::kUnsupported,
              "this processor (" + model_name() + ") lacks " + set + "; use instructions = auto"};
    }
    cpu::use_instruction_set(set);
    return {};
  }
  Result<std::vector<DeviceInfo>> devices() const override {
    DeviceInfo info;
    info.name = model_name();
    SLIM_ASSIGN(info.total_bytes, memory("MemTotal"));
    SLIM_ASSIGN(info.free_bytes, memory("MemAvailable"));
    return std::vector<DeviceInfo>{info};
  }
  bool accelerates(std::string_view op) const override {
    const auto& names = cpu::accelerated_ops();
    return std::find(names.begin(), names.end(), op) != names.end();
  }
  void synchronize(c10::Device) override {}  // the CPU runs in order
};
}  // namespace
SLIM_BACKEND_PLUGIN("cpu", CpuBackend, "The host's processors", kSchema)
