#pragma once
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"
#include "statistics/statistic_set.h"
#include "util/fingerprint.h"

namespace slim {

/// Writes the statistics of a run, block by block, to one safetensors file: "BLOCK/PORT/STATISTIC/KEY", and the run's fingerprint.
/// The header is written last, into space that is reserved for it. Until finish() the file is FILE.partial, deleted on failure.
class SLIM_API StatisticsWriter {
 public:
  /// `statistics`: how many will come, for the space of the header.
  static Result<std::unique_ptr<StatisticsWriter>> create(const std::string& path, int64_t statistics);
  /// Goes on in the FILE.partial of an earlier process, from where its state() was asked for.
  static Result<std::unique_ptr<StatisticsWriter>> resume(const std::string& path, const std::string& state);
  ~StatisticsWriter();
  /// As they were collected: before StatisticSet::finish().
  Status put(const BlockPlan&, StatisticSet&);
  /// What is written so far, as JSON, once it is on the disk.
  Result<std::string> state() const;
  /// Whether FILE.partial stays if the writer ends unfinished (at first: no).
  void keep_partial(bool keep);
  Status finish(const Fingerprint&);

 private:
  StatisticsWriter(std::string path, File file, int64_t header_bytes)
      : path_(std::move(path)), file_(std::move(file)), header_bytes_(header_bytes), end_(header_bytes) {}
  Status append(const std::string& name, const at::Tensor&);

  std::string path_;
  File file_;
  int64_t header_bytes_, end_;
  std::vector<TensorSpec> written_;
  bool finished_ = false, keep_partial_ = false;
};

/// Such a file, read block by block.
class SLIM_API StatisticsFile {
 public:
  static Result<std::unique_ptr<StatisticsFile>> open(const std::string& path);
  const Fingerprint& fingerprint() const { return fingerprint_; }
  /// Fills the statistics that are asked for, on the device; kInvalidArgument names one that the file does not hold, or a kept region input, which
  /// no file holds.
  Status restore(const BlockPlan&, StatisticSet&, at::Device device = at::kCPU) const;

 private:
  StatisticsFile(std::string path, File file) : path_(std::move(path)), file_(std::move(file)) {}
  Result<at::Tensor> read(const StoredTensor&) const;

  std::string path_;
  File file_;
  std::map<std::string, StoredTensor> tensors_;
  Fingerprint fingerprint_;
};

}  // namespace slim
