#pragma once
#include <memory>
#include <string>
#include <vector>

#include "calibrate/spill.h"
#include "config/run_config.h"
#include "model/model.h"

namespace slim {

/// One sample that is used, for the report.
struct SampleFacts {
  std::string origin;  ///< "calib.jsonl:17"
  int64_t text_tokens = 0, image_tokens = 0;
  bool downscaled = false;
  int64_t tokens() const { return text_tokens + image_tokens; }
};

/// The calibration samples at the entry of the model: one carry a batch.
struct Calibration {
  std::vector<Carry> batches;
  std::vector<SampleFacts> samples;
  std::vector<std::string>
      left_out;  ///< "calib.jsonl:3: why": images for a text model, or too large for max_seq_length
  std::vector<std::string> skipped;  ///< "calib.jsonl:17: why": malformed, with skip_bad_samples
  std::vector<std::string> remarks;  ///< what of the data set was passed over, and what it is too small for
  int64_t text_tokens = 0, image_tokens = 0;
  size_t smallest = 0;        ///< the batch with the fewest tokens
  int64_t begun_on_host = 0;  ///< batches whose entry the device had no memory for
  int64_t tokens() const { return text_tokens + image_tokens; }
};

/// Opens the tokenizer and the rest of what turns documents into samples. The error says that runs without data need none of it.
SLIM_API Result<std::unique_ptr<Processor>> open_processor(const RunConfig&, const Model&);

/// Reads the data set of the config and tries its first samples, before anything is computed: kInvalidArgument or what reading it gives.
SLIM_API Status check_calibration_data(const RunConfig&, const Model&);

/// Reads, encodes and batches the data set of the config; pixels are dropped as soon as their batch has begun.
/// `spill`: where the batches go.
SLIM_API Result<Calibration> calibrate_input(const RunConfig&, const Model&, BlockExec&, Progress&,
                                             const Spill& spill = {"", false});

}  // namespace slim
