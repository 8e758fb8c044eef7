#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "run/block_context.h"
#include "run/calibration.h"
#include "run/device_copies.h"
#include "run/exec.h"
#include "run/spill.h"

namespace slim {

/// Takes the calibration batches through the model, one block after the other. Between blocks they lie on the host, or in files;
/// what the device has no memory for is computed on the host, and noted. Used from one thread.
class Propagation {
 public:
  struct Options {
    at::ScalarType dtype = at::kFloat;  ///< of forward passes
    at::Device device = at::kCPU;
    bool overlap = true;       ///< a batch is copied while another is computed
    bool all_experts = false;  ///< every expert sees every token
  };
  /// All must outlive it.
  Propagation(const Options&, const Model&, Spill, Notes&, Progress&);

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
  /// Fills the statistics with what the block sees. `outputs`, unless null: the batches behind it, for replace().
  Status collect(const BlockState&, StatisticSet&, BlockExec&, std::vector<Carry>* outputs);
  void replace(std::vector<Carry> batches) { calibration_.batches = std::move(batches); }
  void forget() { calibration_.batches.clear(); }

  /// On the device that the run computes on.
  BlockExec& exec() { return exec_; }
  BlockExec& host_exec() { return host_exec_; }
  /// Nothing of a block that was broken off stays set, nor kept.
  void reset();
  /// Forgets tensors outside blocks that were read.
  void release_globals();

 private:
  Status forward(const BlockState&, BlockExec&, Carry&);
  Status replace_each(const std::string& where, const std::function<Status(BlockExec&, Carry&)>& pass);
  BatchStream stream(BatchStream::Pass, BatchStream::Keep) const;
  Status keep_region_inputs(BlockExec&);
  Result<Carry> kept(Carry) const;

  Options options_;
  const Model& model_;
  Spill spill_;
  Notes& notes_;
  Progress& progress_;
  BlockExec exec_, host_exec_;
  Calibration calibration_;
};

}  // namespace slim
