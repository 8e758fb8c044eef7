#include "data/data_files.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "data/text_stream.h"

namespace slim {
namespace {

namespace fs = std::filesystem;

constexpr int kDeepest = 6;
constexpr std::array<std::string_view, 6> kSplits = {"train", "test", "validation", "valid", "val", "dev"};

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) {
    return c < 0x80 ? static_cast<char>(std::tolower(c)) : static_cast<char>(c);
  });
  return text;
}

/// Files that come with data sets and describe them.
bool describes(const fs::path& file) {
  static const std::set<std::string> kNames = {"license",       "licence",      "readme",  "notice",
                                               "requirements",  "changelog",    "copying", "dataset_info",
                                               "dataset_infos", "dataset_dict", "state"};
  return kNames.contains(lower(without_compression(file).stem().string()));
}

/// "train" of "train-00000-of-00004.parquet" and of "train/a.png"; empty without one.
std::string split_of(const fs::path& relative) {
  for (const fs::path& part : relative) {
    const std::string name = lower(part.string());
    for (const std::string_view split : kSplits) {
      const bool begins = name.starts_with(split);
      if (begins &&
          (name.size() == split.size() || !std::isalnum(static_cast<unsigned char>(name[split.size()]))))
        return std::string(split);
    }
  }
  return "";
}

std::string some_names(const std::vector<fs::path>& files) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(files.size(), 3); ++i)
    text += (i ? ", " : "") + files[i].filename().string();
  return files.size() > 3 ? text + ", ..." : text;
}

Status list(const fs::path& folder, int depth, std::map<DataKind, std::vector<fs::path>>& files) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const fs::path& path = it->path();
    if (path.filename().string().starts_with(".")) continue;
    std::error_code unknown;
    const DataKind kind = data_kind(path);
    if (it->is_directory(unknown) && kind == DataKind::kUnknown) {
      if (depth > 0 && !it->is_symlink(unknown)) SLIM_TRY(list(path, depth - 1, files));
      continue;
    }
    if (kind == DataKind::kUnknown || describes(path)) continue;
    if (kind != DataKind::kImage) SLIM_TRY(check_plain(path));
    files[kind].push_back(path);
  }
  return error ? Status(Code::kIo, folder.string() + ": " + error.message()) : Status{};
}

/// Records, or images, or texts: see find_data_files().
void choose_kind(std::map<DataKind, std::vector<fs::path>>& files, DataFolder& found) {
  auto& chosen = found.files;
  const auto take = [&](DataKind kind) {
    chosen.insert(chosen.end(), files[kind].begin(), files[kind].end());
  };
  const std::vector<fs::path>& texts = files[DataKind::kText];
  take(DataKind::kLines);
  take(DataKind::kTable);
  if (chosen.empty()) take(DataKind::kObjects);
  found.images = chosen.empty() && !files[DataKind::kImage].empty();
  if (found.images) {
    take(DataKind::kImage);
    if (!texts.empty())
      found.remarks.push_back("the images are the data set; " + std::to_string(texts.size()) +
                              " text files beside them are not read: " + some_names(texts) +
                              " (name a file to read it)");
  } else {
    take(DataKind::kText);
  }
  std::ranges::sort(chosen);
}

Status choose_split(const fs::path& folder, const std::string& asked, DataFolder& found) {
  std::set<std::string> splits;
  for (const fs::path& file : found.files) splits.insert(split_of(file.lexically_relative(folder)));
  std::string names;
  for (const std::string& split : splits) {
    if (!split.empty()) names += (names.empty() ? "" : ", ") + split;
  }
  const bool several = splits.size() > 1 && splits.contains("train");
  const std::string taken = !asked.empty() ? asked : several ? "train" : "";
  if (taken.empty()) return {};
  if (!splits.contains(taken))
    return {Code::kNotFound, folder.string() + ": has no split '" + taken + "'" +
                                 (names.empty() ? "" : " (there are: " + names + ")")};
  std::erase_if(found.files,
                [&](const fs::path& file) { return split_of(file.lexically_relative(folder)) != taken; });
  if (asked.empty())
    found.remarks.push_back("split 'train' is used, of " + names + "; --split takes another");
  return {};
}

}  // namespace

DataKind data_kind(const fs::path& file) {
  static const std::map<std::string, DataKind> kKinds = {
      {".jsonl", DataKind::kLines},   {".ndjson", DataKind::kLines}, {".json", DataKind::kObjects},
      {".parquet", DataKind::kTable}, {".txt", DataKind::kText},     {".raw", DataKind::kText},
      {".jpg", DataKind::kImage},     {".jpeg", DataKind::kImage},   {".png", DataKind::kImage},
      {".webp", DataKind::kImage}};
  const fs::path plain = without_compression(file);
  const auto found = kKinds.find(lower(plain.extension().string()));
  if (found == kKinds.end()) return DataKind::kUnknown;
  const bool packed = plain != file;
  return packed && (found->second == DataKind::kTable || found->second == DataKind::kImage)
             ? DataKind::kUnknown
             : found->second;
}

Status check_plain(const fs::path& file) {
  std::error_code error;
  if (fs::is_regular_file(file, error)) return {};
  return {Code::kInvalidArgument, file.string() + ": is no plain file (" +
                                      (fs::is_directory(file, error) ? "a folder" : "a pipe or device") +
                                      "); write the data set to a file, or take it out of the folder"};
}

Result<DataFolder> find_data_files(const fs::path& folder, const std::string& split) {
  std::map<DataKind, std::vector<fs::path>> files;
  SLIM_TRY(list(folder, kDeepest, files));
  DataFolder found;
  choose_kind(files, found);
  SLIM_TRY(choose_split(folder, split, found));
  return found;
}

}  // namespace slim
