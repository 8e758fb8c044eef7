#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "slim/dtype.hpp"

namespace slim {

/// Whether all bits of `exponent` are set in none of the words; bytes beyond the last whole word are not looked at.
template <class Word>
bool no_word_has(std::span<const std::byte> bytes, Word exponent) {
  constexpr size_t kWords = 64;  // a fixed number: compilers make vectors of it
  std::array<Word, kWords> words;
  for (size_t begin = 0; begin + sizeof(Word) <= bytes.size(); begin += sizeof words) {
    const size_t size = std::min(sizeof words, bytes.size() - begin);
    if (size < sizeof words) words.fill(0);
    std::memcpy(words.data(), bytes.data() + begin, size / sizeof(Word) * sizeof(Word));
    Word found = 0;
    for (const Word word : words) found |= static_cast<Word>((word & exponent) == exponent);
    if (found != 0) return false;
  }
  return true;
}

/// Whether none of the numbers, little-endian, is NaN or Inf; true for types other than F64, F32, F16 and BF16.
inline bool all_finite(Dtype dtype, std::span<const std::byte> bytes) {
  switch (dtype) {
    case Dtype::kF64:
      return no_word_has<uint64_t>(bytes, 0x7ff0000000000000u);
    case Dtype::kF32:
      return no_word_has<uint32_t>(bytes, 0x7f800000u);
    case Dtype::kF16:
      return no_word_has<uint16_t>(bytes, 0x7c00u);
    case Dtype::kBF16:
      return no_word_has<uint16_t>(bytes, 0x7f80u);
    default:
      return true;
  }
}

}  // namespace slim
