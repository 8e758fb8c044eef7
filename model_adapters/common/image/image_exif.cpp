#include <optional>

#include "common/image/image_codecs.hpp"

/// Finds the orientation tag without a decoder's help. Everything here reads untrusted offsets: each read is
/// checked.
namespace slim::model::codec {
namespace {

constexpr size_t kNowhere = std::string_view::npos;

/// An unsigned integer of `count` bytes, if it lies inside.
std::optional<uint64_t> integer(std::string_view bytes, size_t offset, int count, bool big_endian) {
  if (offset > bytes.size() || bytes.size() - offset < static_cast<size_t>(count)) return std::nullopt;
  uint64_t value = 0;
  for (int i = 0; i < count; ++i) {
    value = value << 8 | static_cast<uint8_t>(bytes[offset + (big_endian ? i : count - 1 - i)]);
  }
  return value;
}

std::string_view part(std::string_view bytes, size_t offset, uint64_t size) {
  return offset <= bytes.size() ? bytes.substr(offset, size) : std::string_view{};
}

/// The payload of the APP1 segment with an EXIF block, or nothing.
std::string_view jpeg_exif(std::string_view bytes) {
  constexpr std::string_view kHeader("Exif\0\0", 6);
  for (size_t at = 2; const auto marker = integer(bytes, at, 2, true);) {
    if (*marker == 0xffff) {  // fill byte
      ++at;
      continue;
    }
    const auto size = integer(bytes, at + 2, 2, true);
    if (*marker < 0xff00 || *marker == 0xffda || !size || *size < 2) return {};
    const std::string_view payload = part(bytes, at + 4, *size - 2);
    if (*marker == 0xffe1 && payload.starts_with(kHeader)) return payload.substr(kHeader.size());
    at += 2 + *size;
  }
  return {};
}

std::string_view png_exif(std::string_view bytes) {
  for (size_t at = 8; const auto size = integer(bytes, at, 4, true);) {
    if (part(bytes, at + 4, 4) == "eXIf") return part(bytes, at + 8, *size);
    at += 12 + *size;
  }
  return {};
}

std::string_view webp_exif(std::string_view bytes) {
  for (size_t at = 12; const auto size = integer(bytes, at + 4, 4, false);) {
    if (part(bytes, at, 4) == "EXIF") return part(bytes, at + 8, *size);
    at += 8 + *size + *size % 2;
  }
  return {};
}

/// The value of tag 0x0112 in the first directory of a TIFF structure.
int tiff_orientation(std::string_view tiff) {
  if (tiff.starts_with(std::string_view("Exif\0\0", 6))) tiff.remove_prefix(6);
  const bool big_endian = tiff.starts_with("MM");
  if (!big_endian && !tiff.starts_with("II")) return 1;
  const auto directory = integer(tiff, 4, 4, big_endian);
  const auto count = integer(tiff, directory.value_or(kNowhere), 2, big_endian);
  for (uint64_t i = 0; i < count.value_or(0); ++i) {
    const size_t entry = *directory + 2 + 12 * i;
    const auto tag = integer(tiff, entry, 2, big_endian);
    if (!tag) break;
    if (*tag != 0x0112) continue;
    const auto type = integer(tiff, entry + 2, 2, big_endian).value_or(0);
    const auto value = integer(tiff, entry + 8, type == 4 ? 4 : 2, big_endian).value_or(1);
    return (type == 3 || type == 4) && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

}  // namespace

int exif_orientation(std::string_view bytes) {
  if (bytes.starts_with("\xff\xd8")) return tiff_orientation(jpeg_exif(bytes));
  return tiff_orientation(bytes.starts_with("RIFF") ? webp_exif(bytes) : png_exif(bytes));
}

}  // namespace slim::model::codec
