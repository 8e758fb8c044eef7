#pragma once
#include <chrono>
#include <string>

#include "calibrate/calibration.h"
#include "plan/run_plan.h"
#include "report/notes.h"
#include "slim/phase.hpp"
#include "slim/progress.hpp"
#include "statistics/statistic_set.h"

namespace slim {

/// Gathers the figures of one run, from its construction on.
class SLIM_API RunReport {
 public:
  RunNotes notes;

  void record_proof(size_t folds, double error);
  /// A layer whose groups are not runs of consecutive channels was written.
  void record_scattered_groups() { scattered_groups_ = true; }
  bool scattered_groups() const { return scattered_groups_; }
  /// Tokens per expert of a mixture-of-experts block.
  void record_experts(const BlockPlan&, const StatisticSet&);
  /// The wall time of a block, and what it went to.
  void record_block(const std::string& block, double seconds, const PhaseSeconds& phases) {
    blocks_.push_back({block, seconds, phases});
  }
  /// Everything so far as JSON, and back in another process: for interrupted runs.
  std::string state() const;
  Status restore(const std::string& state);
  /// products: how matrix products were computed (ops::product_text); empty: there were none.
  Report finish(const OutputPlan&, const Model&, const Calibration&, const std::string& products,
                at::Device device) const;

 private:
  struct BlockTime {
    std::string block;
    double seconds = 0;
    PhaseSeconds phases{};
  };

  std::string experts_text() const;
  PhaseSeconds phases_of_all() const;
  std::string time_text() const;

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  size_t folds_ = 0;
  bool scattered_groups_ = false;
  double largest_proof_error_ = 0;
  std::vector<std::pair<double, std::string>> expert_tokens_;
  std::vector<BlockTime> blocks_;
};

/// Most memory that this process has had in RAM so far, in bytes.
SLIM_API int64_t peak_resident_bytes();

}  // namespace slim
