#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "slim/export.hpp"
#include "slim/status.hpp"

/// Canonical Huffman codes of bytes, at most 12 bits long. Pure; safe from any thread.
namespace slim {

constexpr int kLongestCode = 12;
using ByteCounts = std::array<uint64_t, 256>;
/// Bits of each byte's code; 0: the byte does not occur.
using CodeLengths = std::array<uint8_t, 256>;

/// Lengths of least total size, none above kLongestCode (package-merge; Larmore and Hirschberg 1990). A single byte
/// gets one bit.
SLIM_API CodeLengths code_lengths(const ByteCounts&);

class SLIM_API HuffmanEncoder {
 public:
  /// `lengths` from code_lengths().
  explicit HuffmanEncoder(const CodeLengths& lengths);
  /// The codes of all bytes one after the other, the first bit in a byte's highest; zeros fill the last byte.
  std::string encode(std::span<const uint8_t> bytes) const;

 private:
  CodeLengths lengths_;
  std::array<uint16_t, 256> codes_{};
};

class SLIM_API HuffmanDecoder {
 public:
  /// kCorrupt unless the lengths belong to a complete code (or to a single byte).
  static Result<HuffmanDecoder> make(const CodeLengths& lengths);
  /// Exactly `bytes.size()` bytes from exactly these bits; reads nothing beyond them. kCorrupt says why not.
  Status decode(std::span<const uint8_t> stream, std::span<uint8_t> bytes) const;
  /// Bits of the shortest code.
  int shortest() const { return shortest_; }

 private:
  struct Entry {
    uint8_t byte = 0, length = 0;  ///< length 0: no code begins like this
  };
  std::vector<Entry> table_;  ///< by the next kLongestCode bits
  int shortest_ = 1;
};

}  // namespace slim
