#include "ops.h"

#include "device.h"
#include "launch.hpp"

namespace slim::cuda {

const std::vector<std::string>& accelerated_ops() {
  static const std::vector<std::string> names = kernels::registered_operators(c10::DispatchKey::CUDA);
  return names;
}

void synchronize() { check(wait_for_device()); }

}  // namespace slim::cuda
