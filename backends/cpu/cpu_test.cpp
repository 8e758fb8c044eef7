#include <doctest/doctest.h>

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
