#pragma once
#include <memory>

#include "calibrate/propagation.h"
#include "model/block_state.h"
#include "statistics/statistic_set.h"

namespace slim {

/// The block that a run works on: its weights, what its activations have shown, and where it is computed.
struct BlockAtWork {
  BlockState state;
  std::unique_ptr<StatisticSet> statistics;
  BlockExec* exec = nullptr;           ///< of the device, or of the host where that has no memory
  Propagation* propagation = nullptr;  ///< the calibration batches at the block's entry

  const BlockPlan& plan() const { return *state.plan; }
  at::Device device() const { return exec->device(); }
  const std::vector<Carry>& batches() const { return propagation->calibration().batches; }
  /// The same block for another output. Tensors are shared: they are replaced, never written to.
  BlockAtWork copy() const { return {state, statistics->clone(), exec, propagation}; }
};

}  // namespace slim
