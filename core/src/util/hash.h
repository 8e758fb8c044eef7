#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace slim {

/// A checksum of 64 bits that can be continued: against accidents, not against attackers. What is hashed in several pieces gives the
/// same only if all pieces but the last have a multiple of 8 bytes.
constexpr uint64_t kHashStart = 0xcbf29ce484222325u;

inline uint64_t hash_bytes(std::span<const std::byte> bytes, uint64_t hash = kHashStart) {
  constexpr uint64_t kPrime = 0x9e3779b97f4a7c15u;
  const auto mix = [&](uint64_t word) { hash = std::rotl((hash ^ word) * kPrime, 29); };
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, 8);
    mix(word);
  }
  if (i == bytes.size()) return hash;
  uint64_t word = 0;
  std::memcpy(&word, bytes.data() + i, bytes.size() - i);
  mix(word);
  mix(bytes.size() - i);
  return hash;
}

inline uint64_t hash_text(std::string_view text, uint64_t hash = kHashStart) {
  return hash_bytes(std::as_bytes(std::span(text)), hash);
}

/// 16 lower-case digits.
inline std::string hash_digits(uint64_t hash) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text(16, '0');
  for (size_t i = 0; i < 16; ++i) text[15 - i] = kDigits[hash >> (4 * i) & 15];
  return text;
}

}  // namespace slim
