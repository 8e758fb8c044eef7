#pragma once
#include <string>
#include <vector>

#include "slim/adapter.hpp"

namespace slim {

struct DatasetOptions {
  int64_t num_samples = 0;        ///< 0: all
  bool shuffle = false;
  uint64_t seed = 0;
  std::string image_prompt;       ///< for a folder of images
  bool skip_bad_samples = false;  ///< count malformed samples instead of failing
  bool allow_outside = false;     ///< images may lie outside the data set's folder
};

struct Dataset {
  std::vector<Document> documents;
  std::vector<std::string> skipped;  ///< "calib.jsonl:17: why"
};

/// Reads calibration or evaluation data: JSONL of chats, parquet, plain text, or a folder of images. Images are only located
/// here; they are decoded by the adapter's Processor. Errors name file and line; an empty set is an error.
SLIM_API Result<Dataset> read_dataset(const std::string& path, const DatasetOptions&);

}  // namespace slim
