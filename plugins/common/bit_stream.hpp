#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace slim::formats {

/// Words that a dense stream of `count` values of `bits` bits takes.
inline int64_t packed_words(int64_t count, int bits) { return (count * bits + 31) / 32; }

/// Signed codes int8 [rows, count] as dense little-endian streams int32 [rows, packed_words], one per row: value k,
/// moved to be unsigned by adding 2^(bits-1), takes the bits k*bits .. k*bits+bits-1, and may straddle two words;
/// unused bits are 0. bits 1..8. The result is on the CPU.
at::Tensor pack_rows(const at::Tensor& codes, int bits);
/// The opposite: words int32 [rows, packed_words(count, bits)] -> int8 [rows, count].
at::Tensor unpack_rows(const at::Tensor& words, int bits, int64_t count);

}  // namespace slim::formats
