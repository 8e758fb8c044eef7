#include "checkpoint/checksums.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <span>

#include "util/hash.h"
#include "util/strict_json.h"

namespace slim {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kAlgorithm = "slim-64";
constexpr int64_t kChunk = 1 << 20;  // a multiple of 8, as hash_bytes() wants it
constexpr int64_t kLargestFile = int64_t{1} << 30;

/// read(offset, into)
template <class Read>
Result<uint64_t> hash_pieces(int64_t bytes, const Read& read) {
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kChunk, bytes)));
  uint64_t hash = kHashStart;
  for (int64_t done = 0; done < bytes; done += kChunk) {
    const std::span chunk = std::span(buffer).first(static_cast<size_t>(std::min(kChunk, bytes - done)));
    SLIM_TRY(read(done, chunk));
    hash = hash_bytes(chunk, hash);
  }
  return hash;
}

Json to_json(const std::map<std::string, uint64_t>& checksums) {
  Json json = Json::object();
  for (const auto& [name, checksum] : checksums) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(checksum));
    add_new(json, name, text);
  }
  return json;
}

Result<std::map<std::string, uint64_t>> from_json(const Json& json, const char* key) {
  std::map<std::string, uint64_t> checksums;
  const auto found = json.find(key);
  if (found == json.end() || !found->is_object())
    return Status(Code::kCorrupt, std::string("has no object '") + key + "'");
  for (const auto& [name, value] : found->items()) {
    const std::string text = value.is_string() ? value.get<std::string>() : "";
    const char* const end = text.data() + text.size();
    uint64_t checksum = 0;
    const auto read = std::from_chars(text.data(), end, checksum, 16);
    if (text.size() != 16 || read.ec != std::errc{} || read.ptr != end) {
      return Status(Code::kCorrupt,
                    "'" + name + "' has the checksum " + value.dump() + ", expected 16 hexadecimal digits");
    }
    checksums.emplace(name, checksum);
  }
  return checksums;
}

Result<Checksums> parse(const std::string& text) {
  SLIM_ASSIGN(const Json json, parse_strict_json(text));
  if (!json.is_object() || !json.contains("algorithm") || json["algorithm"] != kAlgorithm) {
    return Status(Code::kCorrupt, std::string("does not hold checksums of the kind ") + kAlgorithm);
  }
  Checksums checksums;
  SLIM_ASSIGN(checksums.files, from_json(json, "files"));
  SLIM_ASSIGN(checksums.tensors, from_json(json, "tensors"));
  for (const auto& [name, checksum] : checksums.files) {
    const fs::path path(name);
    if (path.empty() || path.is_absolute() || path.lexically_normal() != path || *path.begin() == "..") {
      return Status(Code::kCorrupt, "names the file '" + name + "', which is none of its folder");
    }
  }
  return checksums;
}

/// The length that a safetensors file gives its header, and the eight bytes of that length; never more than the file has.
Result<int64_t> header_bytes(const File& file, int64_t size) {
  std::array<std::byte, 8> length{};
  if (size < static_cast<int64_t>(length.size())) return size;
  SLIM_TRY(file.read_at(0, length));
  const auto announced = std::bit_cast<uint64_t>(length);
  return announced > static_cast<uint64_t>(size - 8) ? size : static_cast<int64_t>(announced) + 8;
}

Result<uint64_t> file_checksum(const std::string& path) {
  SLIM_ASSIGN(const File file, File::open_read(path));
  SLIM_ASSIGN(int64_t size, file.size());
  if (path.ends_with(".safetensors")) {
    SLIM_ASSIGN(size, header_bytes(file, size));
  }
  return hash_file(file, 0, size);
}

}  // namespace

std::string checksums_text(const Checksums& checksums) {
  return Json{{"algorithm", kAlgorithm},
              {"files", to_json(checksums.files)},
              {"tensors", to_json(checksums.tensors)}}
             .dump(1) +
         "\n";
}

Result<std::optional<Checksums>> read_checksums(const std::string& folder) {
  const std::string path = (fs::path(folder) / kChecksumFile).string();
  const auto text = read_text(path, kLargestFile);
  if (!text.ok() && text.status().code() == Code::kNotFound) return std::optional<Checksums>();
  if (!text.ok()) return text.status();
  auto checksums = parse(*text);
  if (!checksums.ok()) return checksums.status().in(path);
  return std::optional(*std::move(checksums));
}

Result<std::vector<std::string>> check_files(const Checksums& checksums, const std::string& folder) {
  std::vector<std::string> problems;
  for (const auto& [name, expected] : checksums.files) {
    const auto found = file_checksum((fs::path(folder) / name).string());
    if (!found.ok() && found.status().code() != Code::kNotFound) return found.status();
    if (!found.ok())
      problems.push_back(name + ": is missing");
    else if (*found != expected)
      problems.push_back(name + ": its bytes are not those that were written");
  }
  return problems;
}

Result<uint64_t> tensor_checksum(const Checkpoint& checkpoint, const std::string& name) {
  const auto spec = checkpoint.tensors().find(name);
  if (spec == checkpoint.tensors().end())
    return Status(Code::kNotFound, checkpoint.folder() + ": has no tensor '" + name + "'");
  return hash_pieces(byte_size(spec->second).value_or(0), [&](int64_t offset, std::span<std::byte> into) {
    return checkpoint.read_bytes(name, offset, into);
  });
}

Result<uint64_t> hash_file(const std::string& path) {
  SLIM_ASSIGN(const File file, File::open_read(path));
  SLIM_ASSIGN(const int64_t size, file.size());
  return hash_file(file, 0, size);
}

Result<uint64_t> hash_file(const File& file, int64_t offset, int64_t bytes) {
  return hash_pieces(
      bytes, [&](int64_t done, std::span<std::byte> into) { return file.read_at(offset + done, into); });
}

}  // namespace slim
