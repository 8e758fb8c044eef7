#include <zlib.h>

#include "image_target.h"

namespace {

/// With right checksums, or changed bytes would never come past them.
std::string with_checksums(std::string_view png) {
  constexpr size_t kSignature = 8, kFrame = 12;  // length and type before a chunk's data, checksum after it
  std::string fixed(png);
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(fixed[i])); };
  for (size_t at = kSignature; at + kFrame <= fixed.size();) {
    const size_t length = byte(at) << 24 | byte(at + 1) << 16 | byte(at + 2) << 8 | byte(at + 3);
    if (length > fixed.size() - at - kFrame) break;
    const size_t end = at + 8 + length;
    const auto sum =
        ::crc32(0, reinterpret_cast<const Bytef*>(fixed.data() + at + 4), static_cast<uInt>(length + 4));
    for (size_t i = 0; i < 4; ++i) fixed[end + i] = static_cast<char>(sum >> (24 - 8 * i) & 0xff);
    at = end + 4;
  }
  return fixed;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  slim::fuzz::check_image(&slim::model::codec::decode_png, with_checksums(slim::fuzz::text_of(data, size)));
  return 0;
}
