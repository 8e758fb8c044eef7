#include "data/media.h"
#include "util/text.h"

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>

namespace slim {
namespace {
namespace fs = std::filesystem;

/// For messages: a hostile or inlined reference may be megabytes long.
std::string shown(std::string_view reference) {
  constexpr size_t kMost = 120;
  return "'" + cut_text(reference, kMost) + "'";
}

constexpr std::array<int16_t, 256> make_base64_values() {
  std::array<int16_t, 256> values{};
  values.fill(-1);
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i)
    values[static_cast<uint8_t>(kAlphabet[i])] = static_cast<int16_t>(i);
  return values;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Result<std::string> decode_percent(std::string_view url) {
  std::string path;
  for (size_t i = 0; i < url.size(); ++i) {
    if (url[i] != '%') {
      path += url[i];
      continue;
    }
    const int high = i + 2 < url.size() ? hex_value(url[i + 1]) : -1;
    const int low = i + 2 < url.size() ? hex_value(url[i + 2]) : -1;
    if (high < 0 || low < 0) return Status(Code::kCorrupt, "malformed % escape in URL " + shown(url));
    path += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return path;
}

/// The scheme of a URL ("https"), or empty for a path.
std::string_view url_scheme(std::string_view reference) {
  const size_t colon = reference.find(':');
  if (colon == std::string_view::npos || colon < 2) return {};
  const bool authority = reference.substr(colon, 3) == "://";
  const std::string_view scheme = reference.substr(0, colon);
  return authority || scheme == "data" || scheme == "file" ? scheme : std::string_view{};
}

Result<Media> from_data_url(std::string_view url) {
  constexpr std::string_view kMarker = ";base64,";
  const size_t marker = url.substr(0, 256).find(kMarker);
  if (marker == std::string_view::npos) {
    return Status(Code::kCorrupt,
                  "data URL without ';base64,': " + shown(url) + "; expected data:image/png;base64,...");
  }
  SLIM_ASSIGN(std::string bytes, decode_base64(url.substr(marker + kMarker.size())));
  if (bytes.empty()) return Status(Code::kCorrupt, "data URL without data: " + shown(url));
  return Media{{}, std::move(bytes)};
}

bool lies_in(const fs::path& file, const fs::path& folder) {
  const fs::path relative = file.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != "..";
}

/// The file under `base`, or nothing if there is none. An error if it is outside of the root.
Result<std::optional<Media>> try_file(const fs::path& path, const fs::path& root, bool allow_outside) {
  std::error_code error;
  const fs::path resolved = fs::weakly_canonical(path, error);
  if (error) return std::optional<Media>{};
  if (!allow_outside && !lies_in(resolved, root)) {
    return Status(Code::kUnsupported, "image " + shown(path.native()) +
                                          " lies outside of the data set's folder '" + root.string() +
                                          "'; copy the image into that folder, or allow it "
                                          "(--allow-outside, dataset.allow_outside)");
  }
  if (!fs::is_regular_file(resolved, error)) return std::optional<Media>{};
  return std::optional<Media>{Media{resolved.string(), {}}};
}

Result<Media> from_path(const std::string& path, const MediaRoot& root) {
  // The kernel would stop at the zero byte and open another file than the one that was checked.
  if (path.empty() || path.find('\0') != std::string::npos) {
    return Status(Code::kCorrupt, "image path " + shown(path) + " is empty or holds a zero byte");
  }
  std::error_code error;
  const fs::path folder = fs::canonical(root.folder.empty() ? "." : root.folder, error);
  if (error) return Status(Code::kNotFound, "folder '" + root.folder + "': " + error.message());
  for (const fs::path& candidate : {folder / path, folder / "images" / path}) {
    SLIM_ASSIGN(std::optional<Media> media, try_file(candidate, folder, root.allow_outside));
    if (media) return *std::move(media);
  }
  return Status(Code::kNotFound,
                "image " + shown(path) + " not found in '" + folder.string() + "' or its images/");
}

}  // namespace

Result<std::string> decode_base64(std::string_view text) {
  static constexpr std::array<int16_t, 256> kValues = make_base64_values();
  const auto malformed = [](size_t at, const char* what) {
    return Status(Code::kCorrupt, "malformed base64 at character " + std::to_string(at) + ": " + what);
  };
  if (text.size() % 4 != 0) return malformed(text.size(), "the length is not a multiple of 4");
  size_t symbols = text.size();
  while (symbols > 0 && text.size() - symbols < 2 && text[symbols - 1] == '=') --symbols;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  uint32_t bits = 0;
  int held = 0;
  for (size_t i = 0; i < symbols; ++i) {
    const int value = kValues[static_cast<uint8_t>(text[i])];
    if (value < 0) return malformed(i, "expected A-Z, a-z, 0-9, + or /");
    bits = bits << 6 | static_cast<uint32_t>(value);
    held += 6;
    if (held >= 8) {
      held -= 8;
      bytes += static_cast<char>(bits >> held & 0xFF);
    }
  }
  if ((bits & ((1u << held) - 1)) != 0) return malformed(symbols, "bits are left over");
  return bytes;
}

Result<Media> locate_media(std::string_view reference, const MediaRoot& root) {
  const std::string_view scheme = url_scheme(reference);
  if (scheme.empty()) return from_path(std::string(reference), root);
  if (scheme == "data") return from_data_url(reference);
  if (scheme != "file") {
    return Status(Code::kUnsupported, "image " + shown(reference) +
                                          " is not on this machine; download it and name the file instead");
  }
  std::string_view path = reference.substr(5);
  if (path.starts_with("//")) {
    path.remove_prefix(2);
    if (path.starts_with("localhost/")) path.remove_prefix(9);
    if (!path.starts_with("/")) {
      return Status(Code::kUnsupported,
                    "URL " + shown(reference) + " names another host; expected file:///path");
    }
  }
  SLIM_ASSIGN(const std::string decoded, decode_percent(path));
  return from_path(decoded, root);
}

}  // namespace slim
