#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "calibrate/calibration.h"
#include "calibrate/spill.h"
#include "model/block_state.h"
#include "model/forward_runner.h"

namespace slim {

/// Takes the calibration batches through the model, one block after the other. Between blocks they lie on the host, or in files;
/// what the device has no memory for is computed on the host, and noted. Used from one thread.
class Propagation {
 public:
  /// All must outlive it.
  Propagation(const ForwardRunner::Options&, const Model&, Spill, Notes&, Progress&);

  /// The samples of the data set at the entry of the model.
  Status begin(const RunConfig&);
  /// The batches of an interrupted run.
  Status resume(Calibration);
  const Calibration& calibration() const { return calibration_; }
  /// Counts of tokens that an earlier run has seen: nothing is propagated.
  void count_tokens(int64_t text, int64_t image);

  /// The batches at the entry of a stage's first block.
  Status enter(const BlockPlan&);
  /// The batches behind the block, computed with its present weights.
  Status advance(const BlockState&);
  /// Fills the statistics with what the block sees; inputs of regions that they keep are added to those of the exec. `outputs`,
  /// unless null: the batches behind the block, for replace().
  Status collect(const BlockState&, StatisticSet&, BlockExec&, std::vector<Carry>* outputs);
  void replace(std::vector<Carry> batches) { calibration_.batches = std::move(batches); }
  void forget() { calibration_.batches.clear(); }

  /// Its exec computes on the device of the run.
  ForwardRunner& runner() { return runner_; }

 private:
  Status forward(const BlockState&, BlockExec&, Carry&);
  Status replace_each(const std::string& where, const ForwardRunner::Pass& pass);
  ForwardRunner::Batch batches() const;
  Status keep_region_inputs(BlockExec&);
  Result<Carry> kept(Carry) const;

  const Model& model_;
  Spill spill_;
  Notes& notes_;
  Progress& progress_;
  ForwardRunner runner_;
  Calibration calibration_;
};

}  // namespace slim
