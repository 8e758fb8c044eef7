#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "slim/status.hpp"

/// The numbers of Ascend checkpoints. CPU tensors; pure functions.
namespace slim::ascend {

/// int32 [out] = round(bias / deq_scale - input_offset * sum of the row's codes), computed in fp64, ties to even; bias
/// undefined: 0. kNumeric if it does not fit: the bias is too large for a row of tiny weights.
Result<at::Tensor> quant_bias(const at::Tensor& codes, const at::Tensor& deq_scale,
                              const at::Tensor& input_offset, const at::Tensor& bias);

/// int64 whose low 32 bits are the float32's, and back. kCorrupt for numbers that are no bits of a positive float.
at::Tensor float_bits(const at::Tensor& values);
Result<at::Tensor> bits_float(const at::Tensor& bits);

/// int8 codes of 4 bits [2 n, in] -> [n, in]: row 2i in the low nibble, row 2i + 1 in the high one; and back.
at::Tensor pack_row_pairs(const at::Tensor& codes);
at::Tensor unpack_row_pairs(const at::Tensor& packed);

}  // namespace slim::ascend
