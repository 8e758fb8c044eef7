#pragma once
#include <memory>
#include <vector>

#include "config/run_config.h"
#include "model/model.h"
#include "model/open_backend.h"
#include "plan/device_plan.h"
#include "plan/run_plan.h"
#include "plan/work_plan.h"
#include "statistics/statistic_set.h"

namespace slim {

/// A run, opened and decided: all that is known before any weight is read. Not changed afterwards.
struct SLIM_API Job {
  RunConfig asked;   ///< as the user gave it
  RunConfig config;  ///< as it is run: with batches that the device has room for
  OpenBackend backend;
  Model model;
  std::vector<OutputPlan> outputs;
  DeviceMode device_mode;
  MemoryMode memory;
  at::ScalarType dtype = at::kFloat;  ///< of forward passes
  std::vector<PlannedWork> work;      ///< by block
  bool float_inputs = false;          ///< later blocks see the activations of the float model
  int32_t last_forward = -1;  ///< the block up to which statistics are wanted, and the model runs; -1: none

  /// Opens plugins, backend and model, and decides everything. kInvalidArgument, kUnsupported or kOutOfMemory name what cannot be done.
  static Result<std::unique_ptr<Job>> open(const RunConfig&, PluginRegistry&);

  /// Makes the set of statistics that the outputs want of a block, of about so many tokens.
  std::unique_ptr<StatisticSet> observations(const BlockPlan&, int64_t tokens) const;
  bool runs_forward() const { return last_forward >= 0; }
  /// True if a later block wants the output of this one.
  bool feeds_later(const BlockPlan& block) const { return block.index < last_forward; }
  /// True if an output makes anything of the block new.
  bool changes(const BlockPlan&) const;
  /// True if the block's weights are computed with; all other blocks are copied as bytes.
  bool needs_weights(const BlockPlan& block) const { return changes(block) || block.index <= last_forward; }

 private:
  Status decide_propagation();
  Status fit_device();
  void find_last_forward();
};

}  // namespace slim
