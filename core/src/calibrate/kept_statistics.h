#pragma once
#include <memory>
#include <string>

#include "calibrate/calibration.h"
#include "calibrate/statistics_file.h"

namespace slim {

/// The statistics that a run takes from the file of an earlier one (run.statistics), or keeps in a file for later ones
/// (run.save_statistics), and what makes them fit: the model, the dtype of forward passes and the samples.
class KeptStatistics {
 public:
  /// Both must outlive it.
  KeptStatistics(const RunConfig& config, const Model& model, at::ScalarType dtype)
      : config_(config), model_(model), dtype_(dtype) {}

  /// Opens the file of the earlier run, if there is one; kInvalidArgument says what differs.
  Status open();
  bool given() const { return file_ != nullptr; }
  Status restore(const BlockPlan&, StatisticSet&, at::Device) const;
  /// What the earlier run has seen.
  int64_t text_tokens() const;
  int64_t image_tokens() const;
  /// Its data set, for messages.
  std::string source() const;

  /// Begins the file for later runs, if one is wanted. `statistics`: how many will come.
  Status create(int64_t statistics);
  /// Goes on in the file of an interrupted run.
  Status resume(const std::string& state);
  bool kept() const { return writer_ != nullptr; }
  Status put(const BlockPlan&, StatisticSet&);
  /// StatisticsWriter::state(), or empty.
  Result<std::string> state() const;
  void keep_partial(bool keep);
  Status finish(const Calibration&);

 private:
  Result<Fingerprint> fingerprint() const;
  int64_t saved_count(const char* key) const;

  const RunConfig& config_;
  const Model& model_;
  at::ScalarType dtype_;
  std::unique_ptr<StatisticsFile> file_;
  std::unique_ptr<StatisticsWriter> writer_;
};

}  // namespace slim
