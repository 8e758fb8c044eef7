#include "data/dataset.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <utility>

#include "data/media.h"
#include "data/record.h"
#include "data/shuffle.h"
#include "util/text.h"

namespace slim {
namespace {
namespace fs = std::filesystem;

constexpr size_t kMaxLine =
    size_t{256} << 20;  // a line with inlined images is long, a file without line breaks is an accident
constexpr size_t kMaxText = size_t{256} << 20;  // a text that becomes one document is tokenized at once
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::string_view kImagePrompt = "Describe this image in detail.";

std::string extension_of(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(), [](unsigned char c) {
    return c < 0x80 ? static_cast<char>(std::tolower(c)) : static_cast<char>(c);
  });
  return extension;
}

bool is_image(const fs::path& path) {
  static const std::set<std::string> kExtensions{".jpg", ".jpeg", ".png", ".webp"};
  return kExtensions.contains(extension_of(path));
}

bool is_data_file(const fs::path& path) {
  static const std::set<std::string> kExtensions{".jsonl", ".parquet", ".txt"};
  return kExtensions.contains(extension_of(path));
}

/// A line without its end; false at the end of the file. Stops one byte after kMaxLine.
bool read_line(std::istream& in, std::string& line) {
  line.clear();
  std::streambuf& buffer = *in.rdbuf();
  int c = buffer.sbumpc();
  if (c == std::char_traits<char>::eof()) return false;
  while (c != std::char_traits<char>::eof() && c != '\n' && line.size() <= kMaxLine) {
    line += static_cast<char>(c);
    c = buffer.sbumpc();
  }
  return true;
}

/// Gathers documents until there are enough, and decides whether a bad one ends the reading.
class Collector {
 public:
  explicit Collector(const DatasetOptions& options)
      : options_(options), drawn_(options.seed, static_cast<size_t>(options.num_samples)) {}

  bool full() const {
    return !options_.shuffle && options_.num_samples > 0 &&
           dataset_.documents.size() >= static_cast<size_t>(options_.num_samples);
  }

  /// `line`: from 1; 0: the file as a whole. The error, where there is one, names both.
  Status add(const fs::path& file, int64_t line, Result<Document> document) {
    const std::string number = line > 0 ? ":" + std::to_string(line) : "";
    const std::string origin = file.filename().string() + number;
    if (document.ok()) {
      document->origin = origin;
      if (options_.shuffle)
        drawn_.add(*std::move(document));
      else
        dataset_.documents.push_back(*std::move(document));
      return {};
    }
    if (!options_.skip_bad_samples) return document.status().in(file.string() + number);
    dataset_.skipped.push_back(origin + ": " + document.status().message());
    return {};
  }

  Result<Dataset> finish(const std::string& path) && {
    if (options_.shuffle) dataset_.documents = std::move(drawn_).take();
    if (dataset_.documents.empty()) {
      std::string why = "no document in it";
      if (!dataset_.skipped.empty()) {
        why = "all " + std::to_string(dataset_.skipped.size()) +
              " samples are malformed, the first: " + dataset_.skipped[0];
      }
      return Status(Code::kCorrupt, path + ": " + why + "; expected chats, questions, texts or images");
    }
    return std::move(dataset_);
  }

 private:
  const DatasetOptions& options_;
  RandomSelection<Document> drawn_;  ///< with `shuffle`
  Dataset dataset_;
};

class DatasetReader {
 public:
  explicit DatasetReader(const DatasetOptions& options) : options_(options), collector_(options) {}

  Result<Dataset> read(const std::string& path) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status)) return Status(Code::kNotFound, "data set '" + path + "' does not exist");
    if (!fs::is_directory(status)) SLIM_TRY(check_plain(path));
    SLIM_TRY(fs::is_directory(status) ? read_folder(path) : read_file(path));
    return std::move(collector_).finish(path);
  }

 private:
  /// A pipe or a device would be waited for, or read without end.
  static Status check_plain(const fs::path& file) {
    std::error_code error;
    if (fs::is_regular_file(file, error)) return {};
    return Status(Code::kInvalidArgument,
                  file.string() + ": is no plain file (" +
                      (fs::is_directory(file, error) ? "a folder" : "a pipe or device") +
                      "); write the data set to a file, or take it out of the folder");
  }

  Status read_folder(const fs::path& folder) {
    std::vector<fs::path> data, images;
    std::error_code error;
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      const fs::path& path = it->path();
      if (path.filename().string().starts_with(".")) continue;
      if (is_data_file(path)) SLIM_TRY(check_plain(path));
      if (is_data_file(path)) data.push_back(path);
      if (is_image(path)) images.push_back(path);
    }
    if (error) return Status(Code::kIo, folder.string() + ": " + error.message());
    std::sort(data.begin(), data.end());
    std::sort(images.begin(), images.end());
    if (data.empty()) return read_images(folder, images);
    for (const fs::path& file : data) {
      if (!collector_.full()) SLIM_TRY(read_file(file));
    }
    return {};
  }

  Status read_images(const fs::path& folder, const std::vector<fs::path>& images) {
    const std::string prompt =
        options_.image_prompt.empty() ? std::string(kImagePrompt) : options_.image_prompt;
    const MediaRoot root{folder.string(), options_.allow_outside};
    for (const fs::path& image : images) {
      if (collector_.full()) break;
      SLIM_TRY(collector_.add(image, 0, image_document(image.filename().string(), root, prompt)));
    }
    return {};
  }

  static Result<Document> image_document(const std::string& name, const MediaRoot& root,
                                         const std::string& prompt) {
    SLIM_ASSIGN(Media media, locate_media("./" + name, root));  // "./": a name like file:x is no URL
    Message user{"user", {}};
    user.content.push_back({ContentPart::Kind::kImage, {}, {std::move(media.file)}, {}});
    user.content.push_back({ContentPart::Kind::kText, prompt, {}, {}});
    return Document{{std::move(user)}, {}, {}};
  }

  Status read_file(const fs::path& file) {
    const std::string extension = extension_of(file);
    const MediaRoot root{file.parent_path().string(), options_.allow_outside};
    const auto parse = [&root](std::string_view json) { return parse_record(json, root); };
    if (extension == ".jsonl") return read_lines(file, parse);
    if (extension == ".txt")
      return options_.text == TextUnit::kLine ? read_lines(file, parse_text) : read_whole(file);
    if (extension == ".parquet") return read_table(file, root);
    return Status(Code::kUnsupported,
                  file.string() + ": unknown kind of data set '" + extension +
                      "'; expected .jsonl (one object a line), .txt, .parquet or a folder");
  }

  static Result<Document> parse_text(std::string_view line) {
    if (!is_utf8(line)) return Status(Code::kCorrupt, "not UTF-8; convert the file to UTF-8");
    return Document{{}, std::string(line), {}};
  }

  template <class Parse>
  Status read_lines(const fs::path& file, const Parse& parse) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return Status(Code::kIo, file.string() + ": cannot be read");
    std::string line;
    for (int64_t number = 1; !collector_.full() && read_line(in, line); ++number) {
      if (line.size() > kMaxLine) {
        return Status(Code::kCorrupt, file.string() + ":" + std::to_string(number) + ": line longer than " +
                                          std::to_string(kMaxLine >> 20) +
                                          " MiB; expected one sample a line");
      }
      std::string_view text = line;
      if (number == 1 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
      if (text.ends_with('\r')) text.remove_suffix(1);
      if (text.find_first_not_of(" \t") == std::string_view::npos) continue;
      SLIM_TRY(collector_.add(file, number, parse(text)));
    }
    return {};
  }

  Status read_whole(const fs::path& file) {
    std::error_code error;
    if (fs::file_size(file, error) > kMaxText) {
      return Status(Code::kUnsupported, file.string() + ": larger than " + std::to_string(kMaxText >> 20) +
                                            " MiB; split it, or read it line by line (dataset.text=lines)");
    }
    std::ifstream in(file, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(in), {}};
    if (!in) return Status(Code::kIo, file.string() + ": cannot be read");
    if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) return {};
    return collector_.add(file, 0, parse_text(text));
  }

  Status read_table(const fs::path& file, const MediaRoot& root) {
    int64_t row = 0;
    bool enough = false;
    TableSink sink;
    sink.columns = [&](const std::vector<std::string>& columns) {
      auto wanted = wanted_columns(columns);
      return wanted.ok() ? wanted : Result<std::vector<bool>>(wanted.status().in(file.string()));
    };
    sink.row = [&](std::span<const uint8_t> cbor) -> Status {
      SLIM_TRY(collector_.add(file, ++row, parse_row(cbor, root)));
      enough = collector_.full();
      return enough ? Status(Code::kCancelled, "enough rows") : Status{};
    };
    const Status status = options_.parquet(file.string(), sink);
    return enough ? Status{} : status;
  }

  const DatasetOptions& options_;
  Collector collector_;
};

}  // namespace

Result<Dataset> read_dataset(const std::string& path, const DatasetOptions& options) {
  return DatasetReader(options).read(path);
}

}  // namespace slim
