#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "slim/status.hpp"

namespace slim::cuda {

struct Gpu {
  std::string name;
  int64_t total_bytes = 0;
  int capability = 0;  ///< 90: 9.0
};

/// What the NVIDIA driver says, asked without CUDA's runtime.
struct Driver {
  std::vector<Gpu> gpus;
  /// kUnsupported: no driver, no GPU, or a driver that does not start; the message says what to do. `library`: the driver's.
  static Result<Driver> open(const char* library = "libcuda.so.1");
};

/// Loads LibTorch's CUDA operators from beside its CPU library.
Status load_torch_cuda();

}  // namespace slim::cuda
