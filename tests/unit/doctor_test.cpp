#include "commands/doctor.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

using namespace slim;
namespace fs = std::filesystem;

namespace {

/// A machine's proc/ and dev/, gone with the test.
struct Machine {
  fs::path root = fs::temp_directory_path() / ("slim_doctor_test_" + std::to_string(::getpid()));
  Machine() {
    fs::remove_all(root);
    write("proc/cpuinfo",
          "processor\t: 0\nmodel name\t: Some CPU 9\nflags\t\t: fpu avx2 fma avx512f avx512_bf16\n");
    write("proc/meminfo", "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n");
  }
  ~Machine() { fs::remove_all(root); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  }
  std::vector<Finding> examined(std::vector<std::string> plugin_dirs) const {
    PluginRegistry registry(std::move(plugin_dirs));
    return examine(registry, root);
  }
  Finding finding(const std::string& subject, std::vector<std::string> plugin_dirs = {}) const {
    const std::vector<Finding> all = examined(std::move(plugin_dirs));
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const Finding& each) { return each.subject == subject; });
    REQUIRE_MESSAGE(found != all.end(), subject);
    return *found;
  }
};

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<std::string> plugins_of_the_build() {
  const char* const build = std::getenv("SLIM_BUILD_DIR");
  REQUIRE_MESSAGE(build, "SLIM_BUILD_DIR is not set: run through ctest");
  return {std::string(build) + "/lib/slim/plugins"};
}

}  // namespace

TEST_CASE("doctor/ a processor is named with the features that kernels use") {
  const Machine machine;
  const Finding finding = machine.finding("processor");
  CHECK(holds(finding.found, "Some CPU 9, "));
  CHECK(holds(finding.found, "threads, avx2 fma avx512f avx512_bf16"));
  CHECK(finding.advice.empty());
}

#if defined(__x86_64__)
TEST_CASE(
    "doctor/ a processor without AVX2 or FMA gets advice, and one whose features are not known another") {
  const Machine machine;
  for (const char* flags : {"fpu sse4_2", "fpu avx2", "fpu fma"}) {
    machine.write("proc/cpuinfo", std::string("model name : Old CPU\nflags : ") + flags + "\n");
    CHECK(holds(machine.finding("processor").advice, "without AVX2 and FMA"));
  }
  fs::remove(machine.root / "proc/cpuinfo");
  const Finding unknown = machine.finding("processor");
  CHECK(holds(unknown.found, "unknown, "));
  CHECK(holds(unknown.advice, "proc/cpuinfo cannot be read"));
}
#endif

TEST_CASE("doctor/ memory is told in GB, and little of it or none that is known gets advice") {
  const Machine machine;
  CHECK(machine.finding("memory").found == "8.2 GB of 16.4 GB available");
  CHECK(machine.finding("memory").advice.empty());
  machine.write("proc/meminfo", "MemTotal:       16000000 kB\nMemAvailable:    3900000 kB\n");
  CHECK(holds(machine.finding("memory").advice, "close other programs"));
  machine.write("proc/meminfo", "");
  CHECK(machine.finding("memory").found == "unknown");
  CHECK(holds(machine.finding("memory").advice, "mount /proc"));
}

TEST_CASE("doctor/ drivers are told where they are, and how to get them where not") {
  const Machine machine;
  CHECK(machine.finding("NVIDIA driver").found == "none");
  CHECK(holds(machine.finding("NVIDIA driver").advice, "install its driver"));
  CHECK(machine.finding("Ascend driver").found == "none");
  CHECK(holds(machine.finding("Ascend driver").advice, "CANN"));
  machine.write("proc/driver/nvidia/version",
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54\nGCC version: 12\n");
  machine.write("dev/davinci0", "");
  CHECK(machine.finding("NVIDIA driver").found == "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54");
  CHECK(machine.finding("NVIDIA driver").advice.empty());
  CHECK(machine.finding("Ascend driver").found == (machine.root / "dev/davinci0").string());
  CHECK(machine.finding("Ascend driver").advice.empty());
}

TEST_CASE("doctor/ without plugins every kind is missed, with advice") {
  PluginRegistry registry;
  const std::vector<Finding> findings = examine_plugins(registry, {});
  CHECK(findings.size() == 4);
  for (const Finding& finding : findings) {
    CHECK(finding.found == "none");
    CHECK(holds(finding.advice, "--plugin-dir"));
  }
}

TEST_CASE("doctor/ a plugin that cannot be used is named with its file and the reason") {
  const Machine machine;
  machine.write("plugins/libslim_backend_cpu.so", "no library");
  const std::vector<Finding> all = machine.examined({(machine.root / "plugins").string()});
  CHECK(std::any_of(all.begin(), all.end(), [](const Finding& finding) {
    return holds(finding.subject, "cpu") && !finding.advice.empty() && finding.found != "none";
  }));
}

TEST_CASE("doctor/ the backends of the build are told with their devices, or with what they lack") {
  const Machine machine;
  const Finding cpu = machine.finding("backend cpu", plugins_of_the_build());
  CHECK(holds(cpu.found, " GB free"));
  CHECK(cpu.advice.empty());
  const Finding npu = machine.finding("backend npu", plugins_of_the_build());
  CHECK((npu.found == "not usable") != npu.advice.empty());
}

TEST_CASE("doctor/ every missing thing has its advice in the text and in the JSON") {
  const Report report = report_of({{"good", "all there", ""}, {"bad", "none", "get it"}});
  CHECK(report.text == "good: all there\nbad: none\n    get it\n");
  const auto json = nlohmann::json::parse(report.json);
  REQUIRE(json["findings"].size() == 2);
  CHECK(json["findings"][1] == nlohmann::json{{"subject", "bad"}, {"found", "none"}, {"advice", "get it"}});
}
