#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "slim/format.hpp"

namespace slim {

/// A Hugging Face checkpoint folder, mapped read-only: one `*.safetensors` or shards with an index, real files or a hub cache's
/// symlinks. Opening reads and checks every header (lengths, offsets, dtypes, shapes, overlaps, duplicates, index against
/// shards) and no tensor bytes. Thread-safe.
class SLIM_API Checkpoint final : public TensorReader {
 public:
  static Result<std::shared_ptr<const Checkpoint>> open(const std::string& folder);
  ~Checkpoint() override;

  const std::string& folder() const;
  /// Text of config.json (checked to be a JSON object).
  const std::string& config_json() const;
  const std::map<std::string, TensorSpec>& tensors() const override;
  /// An anonymous copy of the bytes; the mapped pages are given back to the system. kUnsupported for sub-byte dtypes.
  Result<at::Tensor> read(std::string_view name) const override;
  /// `rows` of a 2-D tensor, reading nothing else: [n, columns] in the stored dtype. ids int64 [n], checked.
  Result<at::Tensor> read_rows(std::string_view name, const at::Tensor& ids) const;
  /// Entry `index` of the first dimension of a packed tensor, reading nothing else.
  Result<at::Tensor> read_entry(std::string_view name, int64_t index) const;
  /// The stored bytes, valid while the checkpoint lives.
  Result<std::span<const std::byte>> bytes(std::string_view name) const;
  /// Tells the system that the tensor's mapped pages are not needed any more.
  void release(std::string_view name) const;
  /// Asks the system to start reading the tensor from disk.
  void prefetch(std::string_view name) const;
  /// Every other regular file of the folder (tokenizer, processor, chat template, ...): names relative to it, sorted; no
  /// safetensors, index, or pickled weights.
  const std::vector<std::string>& side_files() const;
  int64_t total_bytes() const;
  /// The file that holds a tensor, for messages.
  std::string file_of(std::string_view name) const;

 private:
  Checkpoint();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slim
