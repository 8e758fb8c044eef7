#pragma once
#include <c10/core/Device.h>

#include <string>
#include <string_view>
#include <vector>

#include "slim/algorithm.hpp"
#include "slim/status.hpp"

namespace slim {

struct DeviceInfo {
  std::string name;
  int64_t total_bytes = 0, free_bytes = 0;
};

/// A kind of device. Kernels are not methods here: they are ops of the `slim::` library in LibTorch's dispatcher
/// (slim/ops.hpp), which a backend's library registers for its dispatch key when it is loaded.
class SLIM_API Backend {
 public:
  virtual ~Backend();
  virtual c10::DeviceType device_type() const = 0;
  /// Looks for driver, toolkit and devices; the message says what is missing and how to get it.
  virtual Status open(const Options&) = 0;
  virtual Result<std::vector<DeviceInfo>> devices() const = 0;
  /// True when the backend brings a kernel of its own for this op; false means the reference kernel.
  virtual bool accelerates(std::string_view op) const = 0;
  virtual void synchronize(c10::Device) = 0;
};

}  // namespace slim
