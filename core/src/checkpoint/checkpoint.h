#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "slim/format.hpp"

namespace slim {

/// In a folder that `slim compress` has cut into parts for tensor parallelism: says how.
inline constexpr const char* kPartsFile = "slim_compress.json";

/// A Hugging Face checkpoint folder, opened for reading: one `*.safetensors` or shards with an index, real
/// files or a hub cache's symlinks. Opening reads and checks every header (lengths, offsets, dtypes, shapes,
/// overlaps, duplicates, index against shards) and no tensor bytes. Thread-safe.
class SLIM_API Checkpoint final : public TensorReader {
 public:
  static Result<std::shared_ptr<const Checkpoint>> open(const std::string& folder);
  ~Checkpoint() override;

  const std::string& folder() const;
  /// Text of config.json (checked to be a JSON object).
  const std::string& config_json() const;
  const std::map<std::string, TensorSpec>& tensors() const override;
  /// A copy of the bytes. kUnsupported for sub-byte dtypes, kCorrupt if the file
  /// has shrunk since.
  Result<at::Tensor> read(std::string_view name) const override;
  /// `rows` of a 2-D tensor, reading nothing else: [n, columns] in the stored dtype. ids int64 [n], checked.
  Result<at::Tensor> read_rows(std::string_view name, const at::Tensor& ids) const;
  /// Entry `index` of the first dimension of a packed tensor, reading nothing else.
  Result<at::Tensor> read_entry(std::string_view name, int64_t index) const;
  /// `into.size()` stored bytes from byte `offset` of the tensor on, for any dtype.
  Status read_bytes(std::string_view name, int64_t offset, std::span<std::byte> into) const;
  /// Asks the system to start reading the tensor from disk.
  void prefetch(std::string_view name) const;
  /// Every other regular file of the folder and of its subfolders (tokenizer, processor, chat template, ...):
  /// names relative to it, sorted; no config.json, safetensors, index, weights of other kinds (pickled, GGUF,
  /// ...) or hidden files.
  const std::vector<std::string>& side_files() const;
  /// Those that side_files() leaves out since they are links that lead out of the folder: not into the blobs of the
  /// Hub's cache that it is a snapshot of, nor into another checkpoint's folder.
  const std::vector<std::string>& outside_links() const;
  /// Those that side_files() leaves out for another reason, by it: "larger than 268 MB", "the name is not UTF-8".
  const std::map<std::string, std::vector<std::string>>& left_files() const;
  /// Of all tensors together, without headers.
  int64_t total_bytes() const;
  /// The safetensors files, relative to the folder, sorted.
  const std::vector<std::string>& weight_files() const;
  /// The file that holds a tensor, for messages.
  std::string file_of(std::string_view name) const;

 private:
  Checkpoint();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slim
