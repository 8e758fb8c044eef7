#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "slim/export.hpp"
#include "slim/status.hpp"

/// Lossless compression of int8 weights in the tile order of Ascend's matrix units. docs/compressed-weights.md
/// describes every byte. CPU tensors; pure functions that use LibTorch's threads.
namespace slim {

/// A matrix is cut into fractals of 16 x 32 codes, and 8 x 8 fractals make a tile.
constexpr int64_t kFractalRows = 16, kFractalColumns = 32, kTileFractals = 8;

/// int8 [n, k], padded with zeros, as [ceil(k / 32), ceil(n / 16), 16, 32], contiguous: the order that Ascend calls NZ.
SLIM_API at::Tensor to_nz(const at::Tensor& weight);
/// Back to [n, k] without the padding. `nz` holds just the elements of that shape's padded matrix.
SLIM_API at::Tensor from_nz(const at::Tensor& nz, int64_t n, int64_t k);

/// A compressed matrix as it is stored.
struct CompressedWeight {
  at::Tensor weight;  ///< int8 [bytes]
  at::Tensor index;   ///< int8 [8 * tiles]
  at::Tensor info;    ///< int64 [5]: tile columns, tile rows (in fractals), k, n, 1
};

/// Tiles of a matrix [n, k]: 8 bytes of index each.
SLIM_API int64_t tile_count(int64_t n, int64_t k);
/// More bytes than any [n, k] matrix takes compressed.
SLIM_API int64_t largest_compressed(int64_t n, int64_t k);

/// slim's own codec: one canonical Huffman code for the matrix, tiles that can be unpacked one by one.
SLIM_API CompressedWeight compress_weight(const at::Tensor& weight);
/// int8 [n, k]. kCorrupt for anything that compress_weight() does not write; never reads out of bounds, and takes no
/// more memory than eight times the compressed bytes.
SLIM_API Result<at::Tensor> decompress_weight(const CompressedWeight&);

}  // namespace slim
