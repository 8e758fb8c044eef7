#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "slim/adapter.hpp"

namespace slim {

/// Takes one row of a table as a JSON object; binary columns are base64 strings. A failure stops the reader.
using RecordSink = std::function<Status(std::string_view json)>;
/// Reads a parquet file row by row. The core has none of its own: an optional component that links Arrow
/// supplies it.
using ParquetReader = std::function<Status(const std::string& path, const RecordSink&)>;

struct DatasetOptions {
  int64_t num_samples = 0;  ///< 0: all
  bool shuffle = false;     ///< before num_samples are taken; the order depends on `seed` alone
  uint64_t seed = 0;
  std::string image_prompt = {};  ///< for a folder of images; empty: "Describe this image in detail."
  bool skip_bad_samples = false;  ///< count malformed samples instead of failing
  bool allow_outside = false;     ///< images may lie outside the data set's folder
  ParquetReader parquet = {};     ///< empty: a parquet file is an error
};

struct Dataset {
  std::vector<Document> documents;
  std::vector<std::string> skipped;  ///< "calib.jsonl:17: why"
};

/// Reads calibration or evaluation data. Images are only located here; they are decoded by the adapter's
/// Processor. Reentrant.
///
/// `path` is one of
/// - `.jsonl` (one JSON object a line) or `.parquet` (one object a row),
/// - `.txt`: one document a line,
/// - a folder: every such file directly in it, in the order of names; or, if there is none, its images,
///   each asked `image_prompt`.
///
/// An object is one of
/// - `messages`: [{role, content}], content a string or OpenAI parts
///   {type: text | image | image_url | video | video_url},
/// - `conversations`: [{from, value}], `<image>` in a value standing for the next image,
/// - `question` or `query`, with `answer`, `answers` or `label` (of a list the first is taken),
/// - `input` and `output`, `input` after `instruction` if there is one,
/// - `text`: a document without a chat template.
/// Images beside these stand in `image`, `images` or `img_path`: a path, a file: URL, a base64 data: URL, or
/// {bytes, path}. Paths are relative to the data file, or to images/ beside it, and may not leave its folder
/// unless `allow_outside`.
///
/// Errors name file, line, what was found and what was expected. A set without any document is an error.
SLIM_API Result<Dataset> read_dataset(const std::string& path, const DatasetOptions&);

}  // namespace slim
