#pragma once
#include <cstdint>
#include <cstring>
#include <string_view>

namespace slim::model {

/// Reads one protobuf message field by field (the wire format of Protocol Buffers). A damaged message ends early with broken() set.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  /// Moves to the next field; false at the end or where the message is damaged.
  bool next() {
    if (bytes_.empty() || broken_) return false;
    const uint64_t key = varint();
    field_ = key >> 3;
    switch (key & 7) {
      case 0:
        number_ = varint();
        break;
      case 1:
        text_ = take(8);
        break;
      case 2:
        text_ = take(varint());
        break;
      case 5:
        text_ = take(4);
        break;
      default:
        broken_ = true;
    }
    return !broken_;
  }
  bool broken() const { return broken_; }
  uint64_t field() const { return field_; }        ///< its number in the .proto file
  uint64_t number() const { return number_; }      ///< integers, booleans and enums
  std::string_view text() const { return text_; }  ///< strings, bytes and messages
  float real() const {                             ///< a float
    float value = 0;
    if (text_.size() == sizeof(value)) std::memcpy(&value, text_.data(), sizeof(value));
    return value;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (bytes_.empty()) break;
      const auto byte = static_cast<uint8_t>(bytes_.front());
      bytes_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    broken_ = true;
    return 0;
  }
  std::string_view take(uint64_t size) {
    if (size > bytes_.size()) {
      broken_ = true;
      return {};
    }
    const std::string_view out = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return out;
  }

  std::string_view bytes_;
  std::string_view text_;
  uint64_t field_ = 0, number_ = 0;
  bool broken_ = false;
};

}  // namespace slim::model
