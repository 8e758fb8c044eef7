#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "calibrate/calibration.h"
#include "checkpoint/file.h"
#include "util/fingerprint.h"

namespace slim {

/// What the blocks after a finished one need of those before it.
struct RunState {
  Calibration calibration;           ///< its batches at the entry of the next block
  std::vector<std::string> reports;  ///< by output: RunReport::state()
  std::string statistics;            ///< StatisticsWriter::state(), or empty
};

/// A record of finished blocks in the folder ".slim" of an unfinished output, from which the run can go on after any crash. Each
/// entry is on the disk before the next block begins; the folder disappears with the last step of the run.
class SLIM_API Journal {
 public:
  /// Where a folder's journal is.
  static std::string folder_in(const std::string& output_folder);
  /// Finished blocks that the folder's journal holds; 0 also without one.
  static int64_t blocks_in(const std::string& output_folder);
  static Result<std::unique_ptr<Journal>> begin(const std::string& output_folder, const Fingerprint&);
  /// Goes on with a folder's journal. kInvalidArgument: another process writes it.
  static Result<std::unique_ptr<Journal>> open(const std::string& output_folder);

  const Fingerprint& fingerprint() const { return fingerprint_; }
  /// So many blocks, from the first on, are finished.
  int64_t blocks() const { return blocks_; }
  /// Checksums of everything that was written into an output.
  const std::map<std::string, uint64_t>& tensors(size_t output) const { return tensors_.at(output); }
  /// By finished block: block_checksum() of what it was made from.
  const std::vector<uint64_t>& inputs() const { return inputs_; }
  Result<RunState> state() const;
  /// One more block is finished. `tensors`: by output, what was written since the last record; `input`: see inputs().
  Status record(const std::vector<std::map<std::string, uint64_t>>& tensors, uint64_t input, const RunState&);
  /// A step after the last block ("output 2") is about to be done; then whether it was.
  Status announce(const std::string& step);
  bool announced(const std::string& step) const { return steps_.contains(step); }

 private:
  explicit Journal(const std::string& output_folder) : folder_(folder_in(output_folder)) {}
  static Result<std::unique_ptr<Journal>> read(const std::string& output_folder);
  Status append(const std::string& json);
  Status read_entry(const std::string& json);
  Status check(const std::string& kind, const std::string& path, const std::string& found) const;
  std::string batches_path(int64_t blocks) const;
  std::string state_path(int64_t blocks) const;

  std::string folder_;
  std::unique_ptr<File> file_;
  int64_t end_ = 0, blocks_ = 0;
  Fingerprint fingerprint_;
  std::vector<std::map<std::string, uint64_t>> tensors_;
  std::map<std::string, std::string> checksums_;  ///< of the files of the last block
  std::vector<uint64_t> inputs_;
  std::set<std::string> steps_;
};

}  // namespace slim
