#include "calibrate/kept_statistics.h"

#include <filesystem>

#include "model/model_fingerprint.h"

namespace slim {
namespace {

constexpr const char* kTextTokens = "text tokens";
constexpr const char* kImageTokens = "image tokens";
constexpr const char* kSource = "dataset.path";

}  // namespace

/// Calibration is compared only where this run names some.
Result<Fingerprint> KeptStatistics::fingerprint() const {
  SLIM_ASSIGN(Fingerprint fingerprint, model_fingerprint(model_));
  fingerprint["run.dtype"] = c10::toString(dtype_);
  fingerprint["run.all_experts"] = config_.all_experts ? "true" : "false";
  fingerprint["run.normalize_tokens"] = config_.normalize_tokens ? "true" : "false";
  if (config_.calib.empty()) return fingerprint;
  fingerprint[kSource] = std::filesystem::path(config_.calib).lexically_normal().filename().string();
  fingerprint["dataset.num_samples"] = std::to_string(config_.num_samples);
  fingerprint["dataset.max_seq_length"] = std::to_string(config_.max_seq_length);
  fingerprint["dataset.shuffle"] = config_.shuffle ? "seed " + std::to_string(config_.seed) : "false";
  return fingerprint;
}

// ---- from an earlier run ---------------------------------------------------------------------------------------------

Status KeptStatistics::open() {
  if (config_.statistics.empty()) return {};
  if (!config_.save_statistics.empty()) {
    return {Code::kInvalidArgument,
            "--statistics and --save-statistics exclude each other: nothing new is collected"};
  }
  SLIM_ASSIGN(file_, StatisticsFile::open(config_.statistics));
  SLIM_ASSIGN(const Fingerprint expected, fingerprint());
  const std::string differs = difference(file_->fingerprint(), expected);
  if (differs.empty()) return {};
  return {Code::kInvalidArgument, config_.statistics + ": its statistics are not this run's: " + differs +
                                      "; run with the same, or collect anew with --save-statistics"};
}

Status KeptStatistics::restore(const BlockPlan& block, StatisticSet& statistics, at::Device device) const {
  return file_->restore(block, statistics, device);
}

int64_t KeptStatistics::saved_count(const char* key) const {
  const Fingerprint& found = file_->fingerprint();
  return found.contains(key) ? std::atoll(found.at(key).c_str()) : 0;
}
int64_t KeptStatistics::text_tokens() const { return saved_count(kTextTokens); }
int64_t KeptStatistics::image_tokens() const { return saved_count(kImageTokens); }

std::string KeptStatistics::source() const {
  const Fingerprint& found = file_->fingerprint();
  return found.contains(kSource) ? found.at(kSource) : "unknown data";
}

// ---- for later runs --------------------------------------------------------------------------------------------------

Status KeptStatistics::create(int64_t statistics) {
  if (config_.save_statistics.empty()) return {};
  SLIM_ASSIGN(writer_, StatisticsWriter::create(config_.save_statistics, statistics));
  return {};
}

Status KeptStatistics::resume(const std::string& state) {
  SLIM_ASSIGN(writer_, StatisticsWriter::resume(config_.save_statistics, state));
  return {};
}

Status KeptStatistics::put(const BlockPlan& block, StatisticSet& statistics) {
  return writer_ ? writer_->put(block, statistics) : Status{};
}

Result<std::string> KeptStatistics::state() const {
  return writer_ ? writer_->state() : Result<std::string>(std::string());
}

void KeptStatistics::keep_partial(bool keep) {
  if (writer_) writer_->keep_partial(keep);
}

Status KeptStatistics::finish(const Calibration& calibration) {
  if (!writer_) return {};
  SLIM_ASSIGN(Fingerprint fingerprint, fingerprint());
  fingerprint[kTextTokens] = std::to_string(calibration.text_tokens);
  fingerprint[kImageTokens] = std::to_string(calibration.image_tokens);
  return writer_->finish(fingerprint);
}

}  // namespace slim
