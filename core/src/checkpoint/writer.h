#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace slim {

/// In a folder that is being written: makes it slim's, so that it may be deleted. The record of a run lies in it.
inline constexpr const char* kRecordFolder = ".slim";

struct WriterOptions {
  std::string folder;  ///< what the output is called at the end
  int64_t max_shard_size =
      5'000'000'000;  ///< bytes of tensor data in one shard; a larger single tensor gets its own
  std::string stem =
      "model";  ///< STEM.safetensors, STEM-00001-of-00002.safetensors, STEM.safetensors.index.json
  bool overwrite = false;
  bool checksums = false;  ///< write kChecksumFile beside the tensors
  bool resume = false;     ///< go on in the FOLDER.partial of an earlier process, with the same tensors
  std::vector<std::string> inputs = {};  ///< folders that the output may not be, contain or lie in
  std::vector<std::string> kept =
      {};  ///< files and folders that the output may not be or contain; empty ones do not count
};

/// Writes a checkpoint whose tensors are all known beforehand: headers, offsets and shard names are fixed at
/// the start, space is reserved on the disk, and tensors may come in any order from any thread. Everything
/// goes to FOLDER.partial, which finish() syncs and renames; an unfinished writer removes it, or keeps it for a later one. The same
/// tensors and values give the same bytes. Without tensors there are no shards: a folder of side files alone.
///
/// Shards are filled in the given order. Within one, wider element types come first (equal ones in the given
/// order): the format allows no padding, and readers that map files want every tensor at a multiple of its
/// element size.
class SLIM_API CheckpointWriter {
 public:
  /// kInvalidArgument if the folder exists (without overwrite), is no checkpoint or holds what slim did not write (with it), touches
  /// an input or is being written by another process; kIo if the disk is too small, with both numbers. A FOLDER.partial that slim left in
  /// a crash is replaced; any other is in the way.
  static Result<std::unique_ptr<CheckpointWriter>> create(const WriterOptions&,
                                                          const std::vector<TensorSpec>& tensors);
  ~CheckpointWriter();

  /// Once per tensor; dtype and shape must be those announced. Thread-safe.
  Status put(const std::string& name, const at::Tensor& value);
  /// The stored bytes of a tensor of the input, unchanged; counts as its put(). Any dtype. kNumeric: a number of F64, F32, F16 or BF16
  /// is NaN or Inf. Thread-safe.
  Status copy(const std::string& name, const Checkpoint& from, const std::string& from_name);
  /// The same in another floating type, in which the tensor was announced; kNumeric also: a number that it cannot hold. Memory: a chunk.
  Status copy(const std::string& name, const Checkpoint& from, const std::string& from_name, Dtype dtype);
  /// Checksums of the tensors that came since the last call, by name; their bytes are on the disk when it returns.
  Result<std::map<std::string, uint64_t>> sync_finished();
  /// With WriterOptions::resume: these tensors came in an earlier process. kCorrupt names one whose bytes are others.
  Status adopt(const std::map<std::string, uint64_t>& finished);
  /// Whether FOLDER.partial stays if the writer ends unfinished (at first: no).
  void keep_partial(bool keep);
  /// Side files: `name` is relative to the folder ("config.json", "sub/file"); one of the same name is
  /// replaced.
  Status write_file(const std::string& name, std::string_view contents);
  Status copy_file(const std::string& name, const std::string& source);
  /// Checks that every announced tensor came, writes the index, syncs files and folders, renames. The last
  /// call; with overwrite the old folder is deleted only after the new one has its name.
  Status finish();
  /// Where the files of an output are before finish().
  static std::string partial_of(const std::string& folder);
  /// True while a folder that slim began waits for this output's name: not for an old output that gave its name away.
  static bool is_unfinished(const std::string& folder);
  /// kInvalidArgument while another process writes into it.
  static Status check_unused(const std::string& partial_folder);
  const std::string& partial_folder() const;
  /// Of all tensors together, without headers.
  int64_t total_bytes() const;

 private:
  CheckpointWriter();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slim
