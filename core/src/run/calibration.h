#pragma once
#include <string>
#include <vector>

#include "config/run_config.h"
#include "run/commands.h"
#include "run/model.h"

namespace slim {

/// The calibration samples at the entry of the model: one carry a batch.
struct Calibration {
  std::vector<Carry> batches;
  int64_t samples = 0, text_tokens = 0, image_tokens = 0, downscaled = 0;
  int64_t left_out = 0;              ///< samples that the model cannot take: images for a text model
  std::string first_left_out;        ///< "calib.jsonl:3: why"
  std::vector<std::string> skipped;  ///< "calib.jsonl:17: why"
  size_t smallest = 0;               ///< the batch with the fewest tokens
  int64_t tokens() const { return text_tokens + image_tokens; }
};

/// Reads, encodes and batches the data set of the config; pixels are dropped as soon as their batch has begun.
SLIM_API Result<Calibration> calibrate_input(const RunConfig&, const Model&, BlockExec&, Progress&);

}  // namespace slim
