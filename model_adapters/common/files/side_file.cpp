#include "common/files/side_file.hpp"

#include <cstdio>
#include <memory>
#include <system_error>

#include <nlohmann/json.hpp>

namespace slim::model {
namespace {

constexpr int kMaxDepth = 64;

/// Brackets outside of strings are counted; whether they match is the parser's business.
bool nested_too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') ++i;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (depth > kMaxDepth) return true;
  }
  return false;
}

}  // namespace

Result<std::string> read_side_file(const std::filesystem::path& path, int64_t most) {
  const std::string where = path.string();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return Status(Code::kNotFound, where + ": no such file");
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (!error && size > static_cast<uintmax_t>(most)) {
    return Status(Code::kCorrupt, where + ": has " + std::to_string(size) + " bytes, over the limit of " +
                                      std::to_string(most) + "; download the file again");
  }
  const std::unique_ptr<FILE, int (*)(FILE*)> file(error ? nullptr : std::fopen(path.c_str(), "rb"),
                                                   &std::fclose);
  std::string text(error ? 0 : size, '\0');
  if (!file || std::fread(text.data(), 1, text.size(), file.get()) != text.size()) {
    return Status(Code::kIo, where + ": cannot be read; check its permissions");
  }
  return text;
}

Result<nlohmann::json> parse_side_json(std::string_view text, std::string_view where) {
  const std::string prefix(where);
  if (nested_too_deep(text)) {
    return Status(Code::kCorrupt, prefix + ": nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  auto value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded())
    return Status(Code::kCorrupt, prefix + ": not valid JSON; download the file again");
  return value;
}

}  // namespace slim::model
