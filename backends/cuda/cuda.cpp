#include <algorithm>

#include "driver.h"
#include "ops.h"
#define SLIM_PLUGIN_SCORE 100
#include "slim/plugin.hpp"

namespace {
using namespace slim;

/// Blackwell and later run the PTX of the newest architecture that is compiled.
constexpr int kLeastCapability = 80;

/// NVIDIA GPUs. Links neither driver nor LibTorch's CUDA part: both are opened when the backend is, so that looking at the plugin costs
/// nothing on machines without them.
class CudaBackend final : public Backend {
 public:
  c10::DeviceType device_type() const override { return c10::DeviceType::CUDA; }

  Status open(const Options&) override {
    SLIM_ASSIGN(driver_, cuda::Driver::open());
    for (const cuda::Gpu& gpu : driver_.gpus) {
      if (gpu.capability < kLeastCapability) {
        return {
            Code::kUnsupported,
            gpu.name + " has compute capability " + std::to_string(gpu.capability / 10) + "." +
                std::to_string(gpu.capability % 10) +
                "; the kernels need 8.0 or more: hide it with CUDA_VISIBLE_DEVICES, or use --backend cpu"};
      }
    }
    return cuda::load_torch_cuda();
  }

  Result<std::vector<DeviceInfo>> devices() const override {
    std::vector<DeviceInfo> infos;
    for (const cuda::Gpu& gpu : driver_.gpus) infos.push_back({gpu.name, gpu.total_bytes, gpu.total_bytes});
    return infos;
  }

  bool accelerates(std::string_view op) const override {
    const auto& names = cuda::accelerated_ops();
    return std::find(names.begin(), names.end(), op) != names.end();
  }

  void synchronize(c10::Device) override { cuda::synchronize(); }

 private:
  cuda::Driver driver_;
};
}  // namespace
SLIM_BACKEND_PLUGIN("cuda", CudaBackend, "NVIDIA GPUs from Ampere on", "{}")
