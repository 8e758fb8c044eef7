#pragma once
#include "solve/run_parts.h"

namespace slim {

/// Makes one block after another: reads its weights, gathers its statistics, makes it for every output and takes the calibration batches
/// behind it. A block for which the device has no memory is made on the host.
class BlockPipeline {
 public:
  explicit BlockPipeline(RunParts& parts) : parts_(parts), job_(*parts.job) {}

  /// Begins to read the weights of this block, in another thread.
  void read_ahead(size_t index);
  /// Makes the block of this index; its tensors are on their way to the disk when it returns.
  Status make(size_t index);

 private:
  struct Attempt;

  Status make_from_weights(BlockWeights, const BlockPlan&);
  Status make_changed(BlockAtWork&);
  Status make_on_host(BlockAtWork&, Attempt&, const Status& why);
  Status make_outputs(BlockAtWork&, Attempt&);
  Status make_output(OutputRun&, BlockAtWork&);
  Status gather(BlockAtWork&, Attempt&);
  bool can_begin_again(const Attempt&) const;

  RunParts& parts_;
  const Job& job_;
};

}  // namespace slim
