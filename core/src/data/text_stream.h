#pragma once
#include <filesystem>
#include <istream>
#include <memory>
#include <string>

#include "slim/status.hpp"

namespace slim {

/// The longest line or JSON object: one with inlined images is long, a file without any end of them is an accident.
constexpr size_t kLongestRecord = size_t{256} << 20;

/// The name without ".gz" and ".zst".
std::filesystem::path without_compression(const std::filesystem::path& file);

/// Opens a file of text; what is compressed by gzip or zstd is unpacked as it is read. kIo: it cannot be opened. Damaged compression throws
/// std::exception out of the stream's buffer.
Result<std::unique_ptr<std::istream>> open_text(const std::filesystem::path& file);

/// Reads a line without its end; false at the end of the file. Stops one byte after kLongestRecord. Throws what the buffer throws.
bool read_line(std::istream& in, std::string& line);

/// The objects of a JSON file, one after the other: of a list, or one behind the other, on lines or not. Only the object at hand is in memory.
class JsonObjects {
 public:
  explicit JsonObjects(std::istream& in) : in_(in) {}
  /// The text of the next object; false at the end. kCorrupt: something that is no object stands between. Throws what the buffer throws.
  Result<bool> next(std::string& object);
  /// The line, from 1, on which the last object began.
  int64_t line() const { return line_; }

 private:
  int get();
  /// The first character that is no white space, comma or bracket of a list; -1 at the end.
  int skip_to_object();

  std::istream& in_;
  int64_t line_ = 1, current_ = 1;
};

}  // namespace slim
