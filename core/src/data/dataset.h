#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slim/adapter.hpp"

namespace slim {

/// What a reader of tables reports.
struct TableSink {
  /// Once: the names of the columns; which of them to read.
  std::function<Result<std::vector<bool>>(const std::vector<std::string>& columns)> columns;
  /// Every row in order: a CBOR map from column to value; columns not read are null.
  std::function<Status(std::span<const uint8_t> cbor)> row;
};
/// Reads a table row by row. A failure of the sink stops it and is returned.
using TableReader = std::function<Status(const std::string& path, const TableSink&)>;
/// Reads a parquet file with the optional component libslim_parquet.so, which links Arrow; where that is missing or
/// cannot be loaded, the error says what to do.
SLIM_API Status read_parquet(const std::string& path, const TableSink&);

/// How plain text becomes documents.
enum class TextUnit : uint8_t { kLine, kFile };

struct DatasetOptions {
  int64_t num_samples = 0;  ///< 0: all
  bool shuffle = false;     ///< draw them at random; the order depends on `seed` alone
  uint64_t seed = 0;
  TextUnit text = TextUnit::kLine;
  std::string image_prompt = {};        ///< for a folder of images; empty: "Describe this image in detail."
  bool skip_bad_samples = false;        ///< count malformed samples instead of failing
  bool allow_outside = false;           ///< images may lie outside the data set's folder
  TableReader parquet = &read_parquet;  ///< of .parquet files
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
/// - `.txt`: one document a line, or one a file,
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
/// {bytes, path}, or in a table the bytes alone. Paths are relative to the data file, or to images/ beside it, and
/// may not leave its folder, not by a symbolic link either, unless `allow_outside`.
///
/// Errors name file, line, what was found and what was expected. A set without any document is an error.
SLIM_API Result<Dataset> read_dataset(const std::string& path, const DatasetOptions&);

}  // namespace slim
