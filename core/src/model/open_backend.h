#pragma once
#include <string>

#include "plugin/registry.h"

namespace slim {

struct OpenBackend {
  std::string id;
  Owned<Backend> backend;
  at::Device device = at::kCPU;  ///< the first of its devices: what runs compute on
  Owned<Backend> host;  ///< kernels for what stays on the host (packing), where the device is another
};

/// Opens the backend of run.backend. "auto": that of the highest score which opens; why others do not open is what `slim doctor` tells.
/// Backends' errors name what is missing.
Result<OpenBackend> open_backend(const std::string& wanted, PluginRegistry&);

}  // namespace slim
