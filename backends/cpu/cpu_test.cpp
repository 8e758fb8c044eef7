#include <ATen/core/dispatch/Dispatcher.h>
#include <doctest/doctest.h>

#include <map>

#include "conformance/op_table.h"
#include "ops.h"
#include "plugin/registry.h"

using namespace slim;

TEST_CASE("cpu/ it is loaded by its id and reports one device with memory") {
  PluginRegistry registry;
  auto backend = registry.backend("cpu");
  REQUIRE_MESSAGE(backend.ok(), backend.status().message());
  CHECK((*backend)->device_type() == c10::DeviceType::CPU);
  REQUIRE((*backend)->open({}).ok());
  const auto devices = (*backend)->devices();
  REQUIRE(devices.ok());
  REQUIRE(devices->size() == 1);
  CHECK(devices->front().total_bytes > 0);
  CHECK(devices->front().free_bytes > 0);
  CHECK(devices->front().free_bytes <= devices->front().total_bytes);
}

namespace {
Owned<Backend> cpu_backend(PluginRegistry& registry, const Options& options) {
  auto backend = registry.backend("cpu");
  REQUIRE_MESSAGE(backend.ok(), backend.status().message());
  const Status status = (*backend)->open(options);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return std::move(*backend);
}
}  // namespace

TEST_CASE(
    "cpu/ every kernel of every instruction set agrees with the reference, and the matrix of support says "
    "which there are") {
  PluginRegistry registry;
  const std::vector<op_table::Case> cases = op_table::table();
  const std::vector<std::vector<at::Tensor>> expected = op_table::expected(cases);
  for (const std::string& set : cpu::instruction_sets()) {
    const auto backend = cpu_backend(registry, {{"instructions", set}});
    std::map<std::string, std::pair<int, double>> matrix;
    for (size_t i = 0; i < cases.size(); ++i) {
      const double difference = op_table::difference(expected[i], cases[i].run(at::kCPU));
      CHECK_MESSAGE(difference <= cases[i].bound,
                    set << ": " << cases[i].op << " (" << cases[i].variant << ") differs by " << difference);
      auto& [count, worst] = matrix[cases[i].op];
      ++count;
      worst = std::max(worst, difference);
    }
    for (const auto& [op, result] : matrix) {
      std::printf("%-9s %-17s %-10s %4d cases, largest difference %.1e\n", set.c_str(), op.c_str(),
                  backend->accelerates(op) ? "kernel" : "reference", result.first, result.second);
    }
  }
}

TEST_CASE("cpu/ an unknown instruction set is refused") {
  PluginRegistry registry;
  const auto backend = cpu_backend(registry, {});
  CHECK(backend->open({{"instructions", "avx1024"}}).message().find("lacks avx1024") != std::string::npos);
}

TEST_CASE("cpu/ every operator that it accelerates exists, and has a reference") {
  for (const std::string& op : cpu::accelerated_ops()) {
    const auto handle = c10::Dispatcher::singleton().findSchema({"slim::" + op, ""});
    REQUIRE_MESSAGE(handle.has_value(), op);
    CHECK(handle->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd));
  }
}
