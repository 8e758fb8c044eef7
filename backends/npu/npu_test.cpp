#include <doctest/doctest.h>

#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "plugin/registry.h"
#include "torch_npu.h"

using namespace slim;

TEST_CASE("npu/ without CANN the missing library is named") {
  const Status status = npu::load_torch_npu("libno_such_cann.so");
  CHECK(status.message() ==
        "CANN is missing: libno_such_cann.so is not found; install CANN and run `source set_env.sh` of its "
        "folder, or use --backend cpu");
}

TEST_CASE(
    "npu/ torch_npu is looked for where SLIM_TORCH_NPU says, else in the active environment and on the "
    "system path") {
  ::setenv("SLIM_TORCH_NPU", "/no/such/library.so", 1);
  CHECK(npu::torch_npu_candidates() == std::vector<std::string>{"/no/such/library.so"});
  const Status status = npu::load_torch_npu("libc.so.6");  // any library stands for CANN
  CHECK(status.message().find("/no/such/library.so") != std::string::npos);
  CHECK(status.message().find("SLIM_TORCH_NPU") != std::string::npos);
  ::unsetenv("SLIM_TORCH_NPU");
  const auto folder = std::filesystem::temp_directory_path() / ("slim_npu_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder / "lib/python3.12");
  ::setenv("VIRTUAL_ENV", folder.c_str(), 1);
  ::unsetenv("CONDA_PREFIX");
  CHECK(npu::torch_npu_candidates() ==
        std::vector<std::string>{folder / "lib/python3.12/site-packages/torch_npu/lib/libtorch_npu.so",
                                 "libtorch_npu.so"});
  ::unsetenv("VIRTUAL_ENV");
  std::filesystem::remove_all(folder);
}

TEST_CASE("npu/ the plugin is loaded without an NPU, and opens or says why not") {
  PluginRegistry registry;
  auto backend = registry.backend("npu");
  REQUIRE_MESSAGE(backend.ok(), backend.status().message());
  CHECK((*backend)->device_type() == c10::DeviceType::PrivateUse1);
  const Status status = (*backend)->open({});
  if (!status.ok()) CHECK(status.message().find("--backend cpu") != std::string::npos);
}
