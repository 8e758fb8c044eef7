#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "slim/statistic.hpp"

namespace slim {

/// One safetensors file, some of whose tensors are shorter than announced: sizes that only compression finds out. These
/// follow the others, so that the others are aligned; the header is padded to the length that was reserved.
class RankFile {
 public:
  /// `fixed` have the announced size; of `variable` (one dimension) the size is a bound. Names differ.
  static Result<RankFile> create(const std::string& path, std::vector<TensorSpec> fixed,
                                 const std::vector<TensorSpec>& variable);
  /// Once for each tensor.
  Status put(const std::string& name, const at::Tensor& value);
  /// Writes the header and syncs. kInternal if a tensor is missing.
  Status finish();

 private:
  explicit RankFile(File file) : file_(std::move(file)) {}
  Status write(int64_t offset, const at::Tensor& value);

  File file_;
  std::vector<TensorSpec> specs_;  ///< in file order: all fixed ones, then the variable ones that came
  std::map<std::string, int64_t> fixed_offset_;  ///< of those that have not come yet
  std::map<std::string, TensorSpec> variable_;   ///< that have not come yet
  int64_t header_bytes_ = 0, end_ = 0;
};

/// Reads such a file, or any safetensors file.
class TensorFile {
 public:
  static Result<TensorFile> open(const std::string& path);
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  Result<at::Tensor> read(const std::string& name) const;

 private:
  explicit TensorFile(File file) : file_(std::move(file)) {}
  File file_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace slim
