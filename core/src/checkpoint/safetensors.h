#pragma once
#include <string>
#include <vector>

#include "checkpoint/file.h"
#include "slim/dtype.hpp"

/// The safetensors layout: 8 bytes little-endian header length, JSON header, tensor data without holes.
namespace slim {

/// A tensor and where its bytes lie, counted from the start of the file.
struct StoredTensor {
  TensorSpec spec;
  int64_t begin = 0, end = 0;
};

/// Reads and checks the header; no tensor bytes are read. Every rule of the format is checked, so that later
/// reads need not. In file order.
Result<std::vector<StoredTensor>> read_safetensors_header(const File& file);

/// Everything before the tensor data, for tensors that lie in this order; padded so that the data starts at a
/// multiple of 8.
std::string safetensors_header(const std::vector<TensorSpec>& tensors);

}  // namespace slim
