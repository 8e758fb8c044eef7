#pragma once
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace slim {

struct WriterOptions {
  std::string folder;                         ///< what the output is called at the end
  int64_t max_shard_size = 5'000'000'000;     ///< bytes of tensor data in one shard; a larger single tensor gets its own
  bool overwrite = false;
  bool keep_partial = false;                  ///< leave OUTPUT.partial on failure, for resume
};

/// Writes a checkpoint whose tensors are all known beforehand: headers, offsets and shard names are fixed at the start, space is
/// reserved on the disk, and tensors may come in any order from any thread. Everything goes to FOLDER.partial, which finish()
/// syncs and renames; an unfinished writer removes it.
class SLIM_API CheckpointWriter {
 public:
  /// kInvalidArgument if the folder exists (without overwrite) or lies inside the input; kIo if the disk is too small, with both
  /// numbers. `tensors`: in the order in which they shall lie in the shards.
  static Result<std::unique_ptr<CheckpointWriter>> create(const WriterOptions&, const std::vector<TensorSpec>& tensors);
  ~CheckpointWriter();

  /// Once per tensor; dtype and shape must be those announced. Thread-safe.
  Status put(const std::string& name, const at::Tensor& value);
  /// The stored bytes of a tensor of the input, unchanged. Thread-safe.
  Status copy(const std::string& name, const Checkpoint& from, const std::string& from_name);
  Status write_file(const std::string& name, std::string_view contents);
  Status copy_file(const std::string& name, const std::string& source);
  /// Writes the index, checks that every announced tensor came, syncs files and folder, renames.
  Status finish();
  /// Where files are before finish().
  const std::string& partial_folder() const;
  int64_t total_bytes() const;

 private:
  CheckpointWriter();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slim
