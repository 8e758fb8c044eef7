#pragma once
#include <c10/core/Device.h>

#include <string>
#include <string_view>
#include <vector>

#include "slim/algorithm.hpp"
#include "slim/status.hpp"

namespace slim {

/// One device.
struct DeviceInfo {
  std::string name;         ///< as its maker calls it
  int64_t total_bytes = 0;  ///< of its memory
  int64_t free_bytes = 0;   ///< of its memory, now
};

/// A kind of device. Kernels are not methods here: they are ops of the `slim::` library in LibTorch's dispatcher
/// (slim/ops.hpp), which a backend's library registers for its dispatch key when it is loaded.
class SLIM_API Backend {
 public:
  virtual ~Backend();
  virtual c10::DeviceType device_type() const = 0;  ///< under which LibTorch knows it
  /// Looks for driver, toolkit and devices; the message says what is missing and how to get it.
  virtual Status open(const Options&) = 0;
  /// All devices of this kind, after open(). Errors: the driver's.
  virtual Result<std::vector<DeviceInfo>> devices() const = 0;
  /// True when the backend brings a kernel of its own for this op; false means the reference kernel.
  virtual bool accelerates(std::string_view op) const = 0;
  virtual void synchronize(c10::Device) = 0;  ///< waits until all work given to the device is done
};

}  // namespace slim
