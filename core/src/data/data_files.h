#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "slim/status.hpp"

namespace slim {

/// What kind of data set a file is, by its name, compressed or not.
enum class DataKind : uint8_t {
  kLines,
  kObjects,
  kTable,
  kText,
  kImage,
  kUnknown
};  ///< .jsonl, .json, .parquet, .txt and .raw, images
DataKind data_kind(const std::filesystem::path& file);

/// kInvalidArgument: a pipe or a device, which would be waited for, or read without end; a folder.
Status check_plain(const std::filesystem::path& file);

/// The files of a folder that are its data set.
struct DataFolder {
  std::vector<std::filesystem::path> files;  ///< all of them images, or none, in the order of their names
  bool images = false;
  std::vector<std::string> remarks;  ///< which other files were passed over, and which split was taken
};

/// Looks through a folder and its subfolders, links to folders apart. Records (.jsonl, .parquet, else .json) are the data set where there are any, with
/// texts beside them; else the images, and the texts where there are none. Licences and descriptions are no data. `split`: "train",
/// "test", ... as they stand in names of files or folders; empty: all, or "train" where there are several.
/// kNotFound: no file of that split.
Result<DataFolder> find_data_files(const std::filesystem::path& folder, const std::string& split);

}  // namespace slim
