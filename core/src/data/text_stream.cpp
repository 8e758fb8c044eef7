#include "data/text_stream.h"

#include <boost/iostreams/filter/gzip.hpp>
#include <boost/iostreams/filter/zstd.hpp>
#include <boost/iostreams/filtering_stream.hpp>

#include <fstream>

namespace slim {
namespace {

namespace fs = std::filesystem;
namespace io = boost::iostreams;

/// A file behind a filter, which owns it.
struct Unpacked : io::filtering_istream {
  template <class Filter>
  Unpacked(Filter filter, std::ifstream file) : file_(std::move(file)) {
    push(std::move(filter));
    push(file_);
  }
  std::ifstream file_;
};

}  // namespace

fs::path without_compression(const fs::path& file) {
  const std::string extension = file.extension().string();
  return extension == ".gz" || extension == ".zst" ? file.parent_path() / file.stem() : file;
}

Result<std::unique_ptr<std::istream>> open_text(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return Status(Code::kIo, file.string() + ": cannot be read");
  const std::string extension = file.extension().string();
  std::unique_ptr<std::istream> stream;
  if (extension == ".gz")
    stream = std::make_unique<Unpacked>(io::gzip_decompressor(), std::move(in));
  else if (extension == ".zst")
    stream = std::make_unique<Unpacked>(io::zstd_decompressor(), std::move(in));
  else
    stream = std::make_unique<std::ifstream>(std::move(in));
  return stream;
}

bool read_line(std::istream& in, std::string& line) {
  line.clear();
  std::streambuf& buffer = *in.rdbuf();
  int c = buffer.sbumpc();
  if (c == std::char_traits<char>::eof()) return false;
  while (c != std::char_traits<char>::eof() && c != '\n' && line.size() <= kLongestRecord) {
    line += static_cast<char>(c);
    c = buffer.sbumpc();
  }
  return true;
}

int JsonObjects::get() {
  const int c = in_.rdbuf()->sbumpc();
  if (c == '\n') ++current_;
  return c;
}

int JsonObjects::skip_to_object() {
  constexpr std::string_view kBetween = " \t\r\n,[]\xEF\xBB\xBF";
  int c = get();
  while (c != std::char_traits<char>::eof() && kBetween.find(static_cast<char>(c)) != std::string_view::npos)
    c = get();
  return c;
}

Result<bool> JsonObjects::next(std::string& object) {
  int c = skip_to_object();
  line_ = current_;
  if (c == std::char_traits<char>::eof()) return false;
  const std::string where = "line " + std::to_string(line_);
  if (c != '{')
    return Status(Code::kCorrupt, where + ": expected JSON objects, on lines of their own or in one list");
  object.clear();
  int depth = 0;
  for (bool in_string = false, escaped = false; c != std::char_traits<char>::eof(); c = get()) {
    object += static_cast<char>(c);
    if (object.size() > kLongestRecord) return Status(Code::kCorrupt, where + ": an object of over 256 MiB");
    if (in_string) {
      in_string = escaped || c != '"';
      escaped = !escaped && c == '\\';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{') {
      ++depth;
    } else if (c == '}' && --depth == 0) {
      return true;
    }
  }
  return Status(Code::kCorrupt, where + ": the file ends inside of an object");
}

}  // namespace slim
