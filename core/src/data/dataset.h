#pragma once
#include <cstdint>
#include <functional>
#include <map>
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
  std::string image_prompt = {};  ///< for a folder of images; empty: "Describe this image in detail."
  bool skip_bad_samples = false;  ///< count malformed samples instead of failing
  bool allow_outside = false;     ///< images may lie outside the data set's folder
  std::string split =
      {};  ///< of a folder: "train", "test", ...; empty: all, or "train" where there are several
  std::map<std::string, std::string> columns =
      {};                               ///< other names for the keys below: {"caption_de", "text"}
  TableReader parquet = &read_parquet;  ///< of .parquet files
};

struct Dataset {
  std::vector<Document> documents;
  std::vector<std::string> skipped;  ///< "calib.jsonl:17: why"
  std::vector<std::string>
      remarks;  ///< what was passed over: files, keys that nobody reads, empty samples; which split was taken
};

/// Reads calibration or evaluation data. Images are only located here; they are decoded by the adapter's
/// Processor. Reentrant.
///
/// `path` is one of
/// - `.jsonl` (one JSON object a line), `.json` (objects in a list, or one behind the other) or `.parquet` (one object a row),
/// - `.txt` or `.raw`: one document a line, or one a file; with TextUnit::kFile the texts of a table are one document too,
/// - a folder: such files in it and its subfolders, in the order of names, or its images, each asked `image_prompt`: find_data_files().
/// JSON and texts may be compressed (.gz, .zst).
///
/// An object is one of
/// - `messages`: [{role, content, reasoning_content, tool_calls}], content a string or OpenAI parts
///   {type: text | image | image_url | video | video_url},
/// - `conversations`: [{from, value}], `<image>` in a value standing for the next image,
/// - `question`, `query` or `prompt`, with `answer`, `answers`, `label`, `response`, `output` or `completion` (of a list the first is taken),
/// - `instruction`, `input` (or `context`) or both, with the same names for the answer,
/// - `text`: a document without a chat template; beside an image, and as `caption` too, the answer to `image_prompt`.
/// Beside these stand `system` (or `system_prompt`), `history`, `tools`, `reasoning_content`, and images in `image`, `images`, `img_path` or
/// `file_name`: a path, a file: URL, a base64 data: URL, or
/// {bytes, path}, or in a table the bytes alone. Paths are relative to the data file, or to images/ beside it, and
/// may not leave its folder, not by a symbolic link either, unless `allow_outside`.
///
/// Empty records are counted, and passed over. Errors name file, line, what was found and what was expected. A set without any document is an
/// error.
SLIM_API Result<Dataset> read_dataset(const std::string& path, const DatasetOptions&);

}  // namespace slim
