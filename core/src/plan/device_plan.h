#pragma once
#include <vector>

#include "plan/run_plan.h"

namespace slim {

/// What a run does to need less memory of its device.
struct DeviceMode {
  int64_t batch_size = 0;  ///< samples that run together
  bool read_ahead = true;  ///< the next block's weights are moved while a block is made
};

/// Memory that a run takes at most on its device, from headers alone: that of the block that needs most, with its weights (and the
/// next block's), fp32 copies of what is folded, the statistics, and the work of a forward pass over one batch or of the largest layer.
SLIM_API int64_t peak_device_bytes(const RunConfig&, const Model&, const std::vector<OutputPlan>&,
                                   DeviceMode);
/// With every measure, and one sample at a time.
SLIM_API int64_t least_device_bytes(const RunConfig&, const Model&, const std::vector<OutputPlan>&);
/// The cheapest measures that keep the run within run.max_vram, or, without it, within `free` bytes as far as that can be (0: unknown).
/// kOutOfMemory: none keeps it within run.max_vram, with the least that would do.
SLIM_API Result<DeviceMode> choose_device_mode(const RunConfig&, const Model&, const std::vector<OutputPlan>&,
                                               int64_t free);

}  // namespace slim
