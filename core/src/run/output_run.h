#pragma once
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "checkpoint/writer.h"
#include "run/async_writer.h"
#include "run/block_context.h"
#include "run/calibration.h"
#include "run/run_plan.h"
#include "run/run_report.h"

namespace slim {

/// One checkpoint of a run while it is made: transforms, solves and writes each block. Used from the run's thread; packing and
/// writing happen in the thread of `jobs`.
class OutputRun {
 public:
  /// `model`, `jobs` and `progress` must outlive it; the jobs that it gives must have ended before it does.
  OutputRun(OutputPlan plan, const Model& model, AsyncWriter& jobs, Progress& progress)
      : plan_(std::move(plan)), model_(model), jobs_(jobs), progress_(progress) {}

  const OutputPlan& plan() const { return plan_; }
  bool changes(const BlockPlan& block) const { return plan_.plan.changes(block); }
  RunNotes& notes() { return report_.notes; }
  const std::string& folder() const { return plan_.config.output; }
  /// Reserves the output folder, or takes that of an interrupted run.
  Status create(bool resume);
  /// What an interrupted run has written, and what it had to report.
  Status adopt(const std::map<std::string, uint64_t>& tensors);
  void record_block(const BlockPlan& block, double seconds, const PhaseSeconds& phases) {
    report_.record_block(block.name, seconds, phases);
  }
  Status restore_report(const std::string& state) { return report_.restore(state); }
  CheckpointWriter& writer() { return *writer_; }
  /// Nothing is left of it if it does not finish.
  void discard() {
    if (writer_) writer_->keep_partial(false);
  }
  std::string report_state() const { return report_.state(); }
  /// Makes the block anew: the statistics follow what is folded, the state is then what engines will compute with.
  Status make_block(BlockState&, StatisticSet&, BlockExec&, const Calibration&);
  /// True while make_block() hands tensors to the writer: from then on the block cannot be made again.
  bool has_begun_writing() const { return writing_; }
  /// What was told so far, and back to it: for a block that is made again.
  RunReport told() const { return report_; }
  void tell_again(RunReport report) { report_ = std::move(report); }
  /// Writes a block that nothing changes.
  Status copy_block(const BlockPlan&);
  /// Globals and side files; all jobs must have ended before. Renames the folder to its final name.
  Status finish();
  Report report(const Calibration&, const std::string& products, at::Device) const;

 private:
  Status transform(BlockState&, StatisticSet&, BlockExec&, const Calibration&);
  Status transform_parts(BlockState&, StatisticSet&, BlockExec&, const Calibration&,
                         const std::function<Status()>& begin_proof, Folds&, bool& function_changed);
  Status collect_stale(const BlockState&, StatisticSet&, BlockExec&, const Calibration&);
  Status solve(BlockState&, StatisticSet&, at::Device);
  Status solve_readers(BlockState&, const std::vector<const Layer*>&, const StatisticSet&, at::Device);
  Result<Solved> solve_layer(const BlockState&, const Layer&, const StatisticSet&, at::Device,
                             TensorMap& port_cache);
  Result<Solved> solve_on_host(const BlockState&, const Layer&, const StatisticSet&, const Status& why);
  Status commit(BlockState&, const Layer&, Solved, at::Device);
  at::Tensor decoded_on(at::Device, const Solved&);
  at::Tensor in_model_dtype(const at::Tensor& weight);
  Status write_changed(BlockState&);
  Status write_cache_scales(const BlockPlan&, const StatisticSet&);
  Status put_later(const std::string& name, const at::Tensor&);
  Status copy_later(const std::string& name);
  at::ScalarType scale_dtype(const Scheme& scheme) const {
    return plan_.recipe.format->scale_dtype(scheme, model_.weights->dtype());
  }
  Status check_cancelled(const std::string& where);

  OutputPlan plan_;
  const Model& model_;
  AsyncWriter& jobs_;
  Progress& progress_;
  RunReport report_;
  std::set<std::string> written_;
  bool writing_ = false;
  std::unique_ptr<CheckpointWriter> writer_;
};

}  // namespace slim
