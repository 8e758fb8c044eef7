#include "compress/weight_codec.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "compress/huffman.h"
#include "slim/parallel.hpp"

namespace slim {
namespace {

constexpr int64_t kFractal = kFractalRows * kFractalColumns;
constexpr uint8_t kVersion = 1;
constexpr int64_t kTableBytes = 128, kTableBegin = 5, kHeaderBytes = kTableBegin + kTableBytes,
                  kIndexBytes = 8;

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
Status corrupt_weight(const std::string& what) { return {Code::kCorrupt, "compressed weight: " + what}; }

uint32_t crc32(std::span<const uint8_t> bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < entries.size(); ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xedb88320U : 0);
      entries[i] = value;
    }
    return entries;
  }();
  uint32_t crc = ~0U;
  for (const uint8_t byte : bytes) crc = crc >> 8 ^ table[(crc ^ byte) & 0xff];
  return ~crc;
}

void store_u32(uint8_t* to, uint32_t value) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(value >> (8 * i));
}
uint32_t load_u32(const uint8_t* from) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= uint32_t{from[i]} << (8 * i);
  return value;
}

uint8_t* bytes_of(at::Tensor& tensor) {
  return reinterpret_cast<uint8_t*>(tensor.mutable_data_ptr<int8_t>());
}
std::span<const uint8_t> bytes_of(const at::Tensor& tensor) {
  return {reinterpret_cast<const uint8_t*>(tensor.const_data_ptr<int8_t>()),
          static_cast<size_t>(tensor.numel())};
}

/// The fractals of a matrix, and how tiles group them: tiles follow one another along n first, and so do fractals in a
/// tile.
struct Tiling {
  Tiling(int64_t n, int64_t k) : rows(ceil_div(n, kFractalRows)), columns(ceil_div(k, kFractalColumns)) {}
  int64_t tile_rows() const { return ceil_div(rows, kTileFractals); }
  int64_t tiles() const { return tile_rows() * ceil_div(columns, kTileFractals); }

  int64_t first_row(int64_t tile) const { return tile % tile_rows() * kTileFractals; }
  int64_t first_column(int64_t tile) const { return tile / tile_rows() * kTileFractals; }
  int64_t height(int64_t tile) const { return std::min(kTileFractals, rows - first_row(tile)); }
  int64_t width(int64_t tile) const { return std::min(kTileFractals, columns - first_column(tile)); }
  int64_t codes(int64_t tile) const { return height(tile) * width(tile) * kFractal; }

  /// Calls copy(begin in the NZ matrix, begin in the tile, codes) for each run of fractals.
  template <class F>
  void for_each_run(int64_t tile, F&& copy) const {
    const int64_t run = height(tile) * kFractal;
    for (int64_t i = 0; i < width(tile); ++i)
      copy(((first_column(tile) + i) * rows + first_row(tile)) * kFractal, i * run, run);
  }

  int64_t rows, columns;  ///< in fractals
};

template <class F>
void for_each_tile(const Tiling& tiling, F&& f) {
  parallel_for(0, tiling.tiles(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) f(tile);
  });
}

ByteCounts count_bytes(std::span<const uint8_t> bytes) {
  ByteCounts counts{};
  for (const uint8_t byte : bytes) ++counts[byte];
  return counts;
}

void store_table(const CodeLengths& lengths, uint8_t* table) {
  for (int64_t i = 0; i < kTableBytes; ++i)
    table[i] = static_cast<uint8_t>(lengths[2 * i] | lengths[2 * i + 1] << 4);
}
CodeLengths load_table(const uint8_t* table) {
  CodeLengths lengths{};
  for (int64_t i = 0; i < kTableBytes; ++i) {
    lengths[2 * i] = table[i] & 15;
    lengths[2 * i + 1] = table[i] >> 4;
  }
  return lengths;
}

uint32_t checksum(const at::Tensor& info) {
  const at::Tensor numbers = info.contiguous();
  return crc32({reinterpret_cast<const uint8_t*>(numbers.const_data_ptr<int64_t>()), numbers.nbytes()});
}

struct Parsed {
  int64_t n = 0, k = 0;
  HuffmanDecoder decoder;
  std::vector<size_t> begin;  ///< of every tile's stream, and the end of the last
};

Status check_info(const at::Tensor& info, int64_t& n, int64_t& k) {
  if (info.scalar_type() != at::kLong || info.dim() != 1 || info.size(0) != 5)
    return corrupt_weight("info is not int64 [5]");
  const at::Tensor numbers = info.contiguous();
  const auto* values = numbers.const_data_ptr<int64_t>();
  if (values[0] != kTileFractals || values[1] != kTileFractals || values[4] != 1)
    return corrupt_weight("info names a tiling that slim does not write");
  k = values[2];
  n = values[3];
  constexpr int64_t kLargest = int64_t{1} << 31;
  if (n <= 0 || k <= 0 || n > kLargest || k > kLargest)
    return corrupt_weight("a matrix of " + std::to_string(n) + " x " + std::to_string(k) + " is impossible");
  return {};
}

Result<Parsed> parse(const CompressedWeight& stored, std::span<const uint8_t> stream,
                     std::span<const uint8_t> index) {
  int64_t n = 0, k = 0;
  SLIM_TRY(check_info(stored.info, n, k));
  const Tiling tiling(n, k);
  if (static_cast<int64_t>(index.size()) / kIndexBytes != tiling.tiles() || index.size() % kIndexBytes != 0) {
    return corrupt_weight("the index has " + std::to_string(index.size()) +
                          " bytes, expected 8 for each of " + std::to_string(tiling.tiles()) + " tiles");
  }
  if (static_cast<int64_t>(stream.size()) < kHeaderBytes)
    return corrupt_weight("has " + std::to_string(stream.size()) + " bytes, fewer than its header");
  if (stream[0] != kVersion)
    return corrupt_weight("version " + std::to_string(stream[0]) + ", this slim reads 1");
  if (load_u32(stream.data() + 1) != checksum(stored.info))
    return corrupt_weight("info is not that of this stream");
  auto decoder = HuffmanDecoder::make(load_table(stream.data() + kTableBegin));
  if (!decoder.ok()) return corrupt_weight(decoder.status().message());
  Parsed parsed{n, k, *std::move(decoder), {static_cast<size_t>(kHeaderBytes)}};
  for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
    const uint64_t length = load_u32(index.data() + tile * kIndexBytes);
    const auto least = static_cast<uint64_t>(ceil_div(tiling.codes(tile) * parsed.decoder.shortest(), 8));
    if (length < least || length > stream.size() - parsed.begin.back())
      return corrupt_weight("tile " + std::to_string(tile) + " has an impossible length");
    parsed.begin.push_back(parsed.begin.back() + length);
  }
  if (parsed.begin.back() != stream.size()) return corrupt_weight("bytes after the last tile");
  return parsed;
}

}  // namespace

at::Tensor to_nz(const at::Tensor& weight) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const int64_t rows = ceil_div(n, kFractalRows), columns = ceil_div(k, kFractalColumns);
  const at::Tensor padded =
      at::constant_pad_nd(weight, {0, columns * kFractalColumns - k, 0, rows * kFractalRows - n}, 0);
  return padded.contiguous()
      .view({rows, kFractalRows, columns, kFractalColumns})
      .permute({2, 0, 1, 3})
      .contiguous();
}

at::Tensor from_nz(const at::Tensor& nz, int64_t n, int64_t k) {
  const int64_t rows = ceil_div(n, kFractalRows), columns = ceil_div(k, kFractalColumns);
  const at::Tensor padded = nz.view({columns, rows, kFractalRows, kFractalColumns})
                                .permute({1, 2, 0, 3})
                                .reshape({rows * kFractalRows, columns * kFractalColumns});
  return padded.narrow(0, 0, n).narrow(1, 0, k).contiguous();
}

int64_t tile_count(int64_t n, int64_t k) { return Tiling(n, k).tiles(); }

int64_t largest_compressed(int64_t n, int64_t k) {
  const Tiling tiling(n, k);
  const int64_t codes = tiling.rows * tiling.columns * kFractal;
  return kHeaderBytes + ceil_div(codes * kLongestCode, 8) + tiling.tiles();
}

CompressedWeight compress_weight(const at::Tensor& weight) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const Tiling tiling(n, k);
  const at::Tensor nz = to_nz(weight);
  const auto source = bytes_of(nz);
  const CodeLengths lengths = code_lengths(count_bytes(source));
  const HuffmanEncoder encoder(lengths);

  std::vector<std::string> streams(static_cast<size_t>(tiling.tiles()));
  CompressedWeight result;
  result.index = at::empty({tiling.tiles() * kIndexBytes}, at::kChar);
  uint8_t* index = bytes_of(result.index);
  for_each_tile(tiling, [&](int64_t tile) {
    std::vector<uint8_t> codes(static_cast<size_t>(tiling.codes(tile)));
    tiling.for_each_run(tile, [&](int64_t from, int64_t to, int64_t count) {
      std::memcpy(codes.data() + to, source.data() + from, static_cast<size_t>(count));
    });
    std::string& stream = streams[static_cast<size_t>(tile)];
    stream = encoder.encode(codes);
    store_u32(index + tile * kIndexBytes, static_cast<uint32_t>(stream.size()));
    store_u32(index + tile * kIndexBytes + 4, crc32(codes));
  });

  int64_t bytes = kHeaderBytes;
  for (const std::string& stream : streams) bytes += static_cast<int64_t>(stream.size());
  result.weight = at::empty({bytes}, at::kChar);
  result.info = at::tensor({kTileFractals, kTileFractals, k, n, int64_t{1}}, at::kLong);
  uint8_t* to = bytes_of(result.weight);
  *to = kVersion;
  store_u32(to + 1, checksum(result.info));
  store_table(lengths, to + kTableBegin);
  to += kHeaderBytes;
  for (const std::string& stream : streams) {
    std::memcpy(to, stream.data(), stream.size());
    to += stream.size();
  }
  return result;
}

Result<at::Tensor> decompress_weight(const CompressedWeight& stored) {
  if (stored.weight.scalar_type() != at::kChar || stored.weight.dim() != 1)
    return corrupt_weight("weight is not int8 with one dimension");
  if (stored.index.scalar_type() != at::kChar || stored.index.dim() != 1)
    return corrupt_weight("index is not int8 with one dimension");
  const at::Tensor weight = stored.weight.contiguous(), index = stored.index.contiguous();
  const auto stream = bytes_of(weight), entries = bytes_of(index);
  SLIM_ASSIGN(const Parsed parsed, parse(stored, stream, entries));
  const Tiling tiling(parsed.n, parsed.k);
  at::Tensor nz = at::empty({tiling.columns * tiling.rows * kFractal}, at::kChar);
  uint8_t* target = bytes_of(nz);
  std::mutex mutex;
  Status failed;
  for_each_tile(tiling, [&](int64_t tile) {
    std::vector<uint8_t> codes(static_cast<size_t>(tiling.codes(tile)));
    const size_t begin = parsed.begin[static_cast<size_t>(tile)],
                 end = parsed.begin[static_cast<size_t>(tile) + 1];
    Status status = parsed.decoder.decode(stream.subspan(begin, end - begin), codes);
    if (status.ok() && crc32(codes) != load_u32(entries.data() + tile * kIndexBytes + 4))
      status = Status(Code::kCorrupt, "wrong checksum");
    if (!status.ok()) {
      const std::lock_guard guard(mutex);
      failed = corrupt_weight("tile " + std::to_string(tile) + ": " + status.message());
      return;
    }
    tiling.for_each_run(tile, [&](int64_t to, int64_t from, int64_t count) {
      std::memcpy(target + to, codes.data() + from, static_cast<size_t>(count));
    });
  });
  if (!failed.ok()) return failed;
  return from_nz(nz, parsed.n, parsed.k);
}

}  // namespace slim
