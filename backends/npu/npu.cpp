#include <ATen/Context.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#define SLIM_PLUGIN_SCORE 90
#include "slim/plugin.hpp"
#include "torch_npu.h"

namespace {
using namespace slim;

/// Where torch_npu's allocator tells.
void read_memory(c10::DeviceIndex device, DeviceInfo& info) {
  auto* const allocator =
      dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(c10::DeviceType::PrivateUse1));
  if (!allocator) return;
  try {
    const auto [free, total] = allocator->getMemoryInfo(device);
    info.free_bytes = static_cast<int64_t>(free);
    info.total_bytes = static_cast<int64_t>(total);
  } catch (const c10::Error&) {
    info.free_bytes = info.total_bytes = 0;  // unknown
  }
}

/// Ascend NPUs through torch_npu, opened at run time. Operators run on the core's reference kernels, which are composed of LibTorch's.
class NpuBackend final : public Backend {
 public:
  c10::DeviceType device_type() const override { return c10::DeviceType::PrivateUse1; }
  Status open(const Options&) override {
    SLIM_TRY(npu::load_torch_npu());
    if (at::isPrivateUse1HooksRegistered()) return {};
    return {
        Code::kUnsupported,
        "torch_npu was loaded, but offers no device; see whether npu-smi lists an NPU, or use --backend cpu"};
  }
  Result<std::vector<DeviceInfo>> devices() const override {
    std::vector<DeviceInfo> infos(static_cast<size_t>(at::detail::getPrivateUse1Hooks().deviceCount()));
    for (size_t i = 0; i < infos.size(); ++i) {
      infos[i].name = "Ascend NPU " + std::to_string(i);
      read_memory(static_cast<c10::DeviceIndex>(i), infos[i]);
    }
    return infos;
  }
  bool accelerates(std::string_view) const override { return false; }
  void synchronize(c10::Device device) override {
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  }
};
}  // namespace
SLIM_BACKEND_PLUGIN("npu", NpuBackend, "Ascend NPUs through torch_npu", "{}")
