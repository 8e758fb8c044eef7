#include "data/dataset.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <utility>

#include "data/data_files.h"
#include "data/media.h"
#include "data/record.h"
#include "data/shuffle.h"
#include "data/text_stream.h"
#include "util/text.h"

namespace slim {
namespace {
namespace fs = std::filesystem;

constexpr size_t kMaxText = size_t{256} << 20;  // a text that becomes one document is tokenized at once
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::string_view kImagePrompt = "Describe this image in detail.";

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
    if (document.ok() && document->messages.empty() &&
        document->text.find_first_not_of(" \t\r\n") == std::string::npos) {
      ++empty_;
      return {};
    }
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

  void remark(std::string text) { dataset_.remarks.push_back(std::move(text)); }

  Result<Dataset> finish(const std::string& path) && {
    if (empty_ > 0) remark(std::to_string(empty_) + " empty samples passed over");
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
  int64_t empty_ = 0;
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
    remark_unread();
    return std::move(collector_).finish(path);
  }

 private:
  Status read_folder(const fs::path& folder) {
    SLIM_ASSIGN(const DataFolder found, find_data_files(folder, options_.split));
    for (const std::string& remark : found.remarks) collector_.remark(remark);
    if (found.images) return read_images(folder, found.files);
    for (const fs::path& file : found.files) {
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
      SLIM_TRY(
          collector_.add(image, 0, image_document(image.lexically_relative(folder).string(), root, prompt)));
    }
    return {};
  }

  void remark_unread() {
    std::string keys;
    size_t named = 0;
    for (const auto& [key, count] : unread_) {
      if (++named > 12) break;
      keys += (keys.empty() ? "" : ", ") + key + " (" + std::to_string(count) + ")";
    }
    if (keys.empty()) return;
    if (unread_.size() > 12) keys += ", and " + std::to_string(unread_.size() - 12) + " more";
    collector_.remark("keys that are not read, with their samples: " + keys);
  }

  static Result<Document> image_document(const std::string& name, const MediaRoot& root,
                                         const std::string& prompt) {
    SLIM_ASSIGN(Media media, locate_media("./" + name, root));  // "./": a name like file:x is no URL
    Message user{"user", {}};
    user.content.push_back({ContentPart::Kind::kImage, {}, {std::move(media.file)}, {}});
    user.content.push_back({ContentPart::Kind::kText, prompt, {}, {}});
    return Document{{std::move(user)}, {}, {}};
  }

  /// What throws on the way (damaged compression, a disk that fails) ends the reading of the file.
  Status read_file(const fs::path& file) try {
    const RecordOptions records{
        {file.parent_path().string(), options_.allow_outside}, options_.image_prompt, options_.columns};
    const auto parse = [&](std::string_view json) { return parse_record(json, records, &unread_); };
    switch (data_kind(file)) {
      case DataKind::kLines:
        return read_lines(file, parse);
      case DataKind::kObjects:
        return read_objects(file, parse);
      case DataKind::kTable:
        return read_table(file, records);
      case DataKind::kText:
        return options_.text == TextUnit::kLine ? read_lines(file, parse_text) : read_whole(file);
      default:
        return Status(Code::kUnsupported,
                      file.string() + ": unknown kind of data set '" + file.extension().string() +
                          "'; expected .jsonl (one object a line), .json, .txt, .parquet or a folder");
    }
  } catch (const std::exception& error) {
    return Status(Code::kIo,
                  file.string() + ": cannot be read to its end (" + error.what() + "); is the file whole?");
  }

  static Result<Document> parse_text(std::string_view line) {
    if (!is_utf8(line)) return Status(Code::kCorrupt, "not UTF-8; convert the file to UTF-8");
    return Document{{}, std::string(line), {}};
  }

  template <class Parse>
  Status read_lines(const fs::path& file, const Parse& parse) {
    SLIM_ASSIGN(const auto in, open_text(file));
    std::string line;
    for (int64_t number = 1; !collector_.full() && read_line(*in, line); ++number) {
      if (line.size() > kLongestRecord) {
        return Status(Code::kCorrupt, file.string() + ":" + std::to_string(number) + ": line longer than " +
                                          std::to_string(kLongestRecord >> 20) +
                                          " MiB; expected one sample a line");
      }
      std::string_view text = line;
      if (number == 1 && is_utf16(text))
        return Status(Code::kCorrupt,
                      file.string() + ": is UTF-16; convert the file to UTF-8 (iconv -f UTF-16 -t UTF-8)");
      if (number == 1 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
      if (text.ends_with('\r')) text.remove_suffix(1);
      if (text.find_first_not_of(" \t") == std::string_view::npos) continue;
      SLIM_TRY(collector_.add(file, number, parse(text)));
    }
    return {};
  }

  static bool is_utf16(std::string_view text) {
    return text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF");
  }

  template <class Parse>
  Status read_objects(const fs::path& file, const Parse& parse) {
    SLIM_ASSIGN(const auto in, open_text(file));
    JsonObjects objects(*in);
    std::string object;
    while (!collector_.full()) {
      Result<bool> more = objects.next(object);
      if (!more.ok()) return more.status().in(file.string());
      if (!*more) break;
      SLIM_TRY(collector_.add(file, objects.line(), parse(object)));
    }
    return {};
  }

  Status read_whole(const fs::path& file) {
    SLIM_ASSIGN(const auto in, open_text(file));
    std::string text;
    std::streambuf& buffer = *in->rdbuf();
    for (int c = buffer.sbumpc(); c != std::char_traits<char>::eof(); c = buffer.sbumpc()) {
      text += static_cast<char>(c);
      if (text.size() > kMaxText)
        return Status(Code::kUnsupported, file.string() + ": larger than " + std::to_string(kMaxText >> 20) +
                                              " MiB; split it, or read it line by line (dataset.text=lines)");
    }
    if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) return {};
    return collector_.add(file, 0, parse_text(text));
  }

  Status read_table(const fs::path& file, const RecordOptions& records) {
    int64_t row = 0;
    bool enough = false;
    std::vector<std::string> passed_over;
    std::string joined;
    TableSink sink;
    sink.columns = [&](const std::vector<std::string>& columns) {
      auto wanted = wanted_columns(columns, records);
      for (size_t i = 0; wanted.ok() && i < columns.size(); ++i)
        if (!(*wanted)[i]) passed_over.push_back(columns[i]);
      return wanted.ok() ? wanted : Result<std::vector<bool>>(wanted.status().in(file.string()));
    };
    sink.row = [&](std::span<const uint8_t> cbor) -> Status {
      Result<Document> document = parse_row(cbor, records, &unread_);
      ++row;
      // Rows that are one text: a paragraph each.
      if (options_.text == TextUnit::kFile && document.ok() && document->messages.empty())
        joined += document->text.ends_with('\n') ? document->text : document->text + "\n";
      else
        SLIM_TRY(collector_.add(file, row, std::move(document)));
      enough = collector_.full() || joined.size() > kMaxText;
      return enough ? Status(Code::kCancelled, "enough rows") : Status{};
    };
    const Status status = options_.parquet(file.string(), sink);
    for (const std::string& column : passed_over) unread_[cut_text(column, 40)] += row;
    if (!enough) SLIM_TRY(status);
    return joined.empty() ? Status{} : collector_.add(file, 0, Document{{}, std::move(joined), {}});
  }

  const DatasetOptions& options_;
  Collector collector_;
  UnreadKeys unread_;
};

}  // namespace

Result<Dataset> read_dataset(const std::string& path, const DatasetOptions& options) {
  return DatasetReader(options).read(path);
}

}  // namespace slim
