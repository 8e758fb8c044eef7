#include "compress/huffman.h"

#include <algorithm>

namespace slim {
namespace {

/// Codes in the order of (length, byte), as canonical codes are numbered.
std::array<uint16_t, 256> canonical_codes(const CodeLengths& lengths) {
  std::array<uint16_t, 256> codes{};
  uint16_t next = 0;
  for (int length = 1; length <= kLongestCode; ++length) {
    for (size_t byte = 0; byte < lengths.size(); ++byte) {
      if (lengths[byte] == length) codes[byte] = next++;
    }
    next = static_cast<uint16_t>(next << 1);
  }
  return codes;
}

/// A coin of package-merge: its weight, and the bytes that it holds (with repetitions).
struct Coin {
  uint64_t weight = 0;
  std::vector<uint8_t> bytes;
};

std::vector<Coin> packaged(const std::vector<Coin>& coins) {
  std::vector<Coin> packages;
  for (size_t i = 0; i + 1 < coins.size(); i += 2) {
    Coin both = coins[i];
    both.weight += coins[i + 1].weight;
    both.bytes.insert(both.bytes.end(), coins[i + 1].bytes.begin(), coins[i + 1].bytes.end());
    packages.push_back(std::move(both));
  }
  return packages;
}

bool lighter(const Coin& a, const Coin& b) { return a.weight < b.weight; }

}  // namespace

CodeLengths code_lengths(const ByteCounts& counts) {
  std::vector<Coin> singles;
  for (size_t byte = 0; byte < counts.size(); ++byte) {
    if (counts[byte] > 0) singles.push_back({counts[byte], {static_cast<uint8_t>(byte)}});
  }
  CodeLengths lengths{};
  if (singles.size() == 1) lengths[singles.front().bytes.front()] = 1;
  if (singles.size() < 2) return lengths;
  std::stable_sort(singles.begin(), singles.end(), lighter);
  std::vector<Coin> coins = singles;
  for (int level = 1; level < kLongestCode; ++level) {
    const std::vector<Coin> packages = packaged(coins);
    coins.clear();
    std::merge(singles.begin(), singles.end(), packages.begin(), packages.end(), std::back_inserter(coins),
               lighter);
  }
  for (size_t i = 0; i < 2 * singles.size() - 2; ++i) {
    for (const uint8_t byte : coins[i].bytes) ++lengths[byte];
  }
  return lengths;
}

HuffmanEncoder::HuffmanEncoder(const CodeLengths& lengths)
    : lengths_(lengths), codes_(canonical_codes(lengths)) {}

std::string HuffmanEncoder::encode(std::span<const uint8_t> bytes) const {
  std::string stream;
  stream.reserve(bytes.size() / 2);
  uint32_t pending = 0;
  int held = 0;
  for (const uint8_t byte : bytes) {
    pending = pending << lengths_[byte] | codes_[byte];
    held += lengths_[byte];
    while (held >= 8) {
      held -= 8;
      stream.push_back(static_cast<char>(pending >> held & 0xff));
    }
  }
  if (held > 0) stream.push_back(static_cast<char>(pending << (8 - held) & 0xff));
  return stream;
}

Result<HuffmanDecoder> HuffmanDecoder::make(const CodeLengths& lengths) {
  uint32_t covered = 0, used = 0;
  HuffmanDecoder decoder;
  decoder.shortest_ = kLongestCode;
  for (const uint8_t length : lengths) {
    if (length == 0) continue;
    if (length > kLongestCode)
      return Status(Code::kCorrupt, "a code of " + std::to_string(length) + " bits, at most 12 are allowed");
    covered += 1U << (kLongestCode - length);
    ++used;
    decoder.shortest_ = std::min<int>(decoder.shortest_, length);
  }
  const uint32_t wanted = 1U << kLongestCode;
  if (covered != wanted && !(used == 1 && covered == wanted / 2))
    return Status(Code::kCorrupt, "the lengths of the codes belong to no code");
  decoder.table_.resize(wanted);
  const auto codes = canonical_codes(lengths);
  for (size_t byte = 0; byte < lengths.size(); ++byte) {
    if (lengths[byte] == 0) continue;
    const int free_bits = kLongestCode - lengths[byte];
    const Entry entry{static_cast<uint8_t>(byte), lengths[byte]};
    std::fill_n(decoder.table_.begin() + (codes[byte] << free_bits), size_t{1} << free_bits, entry);
  }
  return decoder;
}

Status HuffmanDecoder::decode(std::span<const uint8_t> stream, std::span<uint8_t> bytes) const {
  constexpr uint32_t kMask = (1U << kLongestCode) - 1;
  uint32_t pending = 0;
  int held = 0;  // bits of `pending`; negative once more were taken than there are
  size_t next = 0;
  for (uint8_t& byte : bytes) {
    while (held < kLongestCode && next < stream.size()) {
      pending = pending << 8 | stream[next++];
      held += 8;
    }
    const uint32_t bits =
        held >= kLongestCode ? pending >> (held - kLongestCode) : pending << (kLongestCode - held);
    const Entry entry = table_[bits & kMask];
    if (entry.length == 0) return {Code::kCorrupt, "bits that are no code"};
    held -= entry.length;
    if (held < 0) return {Code::kCorrupt, "the stream ends too early"};
    byte = entry.byte;
  }
  const bool padding_only = next == stream.size() && held < 8 && (pending & ((1U << held) - 1)) == 0;
  return padding_only ? Status{} : Status(Code::kCorrupt, "the stream goes on after its last code");
}

}  // namespace slim
