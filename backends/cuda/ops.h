#pragma once
#include <string>
#include <vector>

namespace slim::cuda {

/// Names of the `slim::` operators that have a kernel here.
const std::vector<std::string>& accelerated_ops();
/// Waits for all work of the current device.
void synchronize();

}  // namespace slim::cuda
