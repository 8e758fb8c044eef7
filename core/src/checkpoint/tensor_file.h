#pragma once
#include <string>
#include <utility>
#include <vector>

#include "slim/statistic.hpp"

namespace slim {

/// Named tensors as a safetensors file, in this order; on the disk when it returns.
SLIM_API Status write_tensors(const std::string& path,
                              const std::vector<std::pair<std::string, at::Tensor>>& tensors);
/// All tensors of such a file.
SLIM_API Result<TensorMap> read_tensors(const std::string& path);

}  // namespace slim
