#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "slim/export.hpp"

namespace slim {

/// Every element type that a safetensors header may name (format version of safetensors 0.8).
enum class Dtype : uint8_t {
  kBool, kU8, kI8, kI16, kU16, kI32, kU32, kI64, kU64,
  kF16, kBF16, kF32, kF64, kC64,
  kF8E4M3, kF8E5M2, kF8E8M0, kF4, kF6E2M3, kF6E3M2,
  kF8E4M3FNUZ, kF8E5M2FNUZ
};

/// The header's name of a type ("BF16").
SLIM_API std::string_view dtype_name(Dtype);
/// The type of a header's name; nullopt for a name that the format does not have.
SLIM_API std::optional<Dtype> dtype_from_name(std::string_view);
/// Bits of one element (4 and 6 for the sub-byte floats).
SLIM_API int dtype_bits(Dtype);
/// LibTorch's type of the same bytes; nullopt for the sub-byte floats, which slim copies but never computes
/// with.
SLIM_API std::optional<c10::ScalarType> to_scalar_type(Dtype);
/// The other way; nullopt for types that no header may name.
SLIM_API std::optional<Dtype> from_scalar_type(c10::ScalarType);

/// A tensor as a checkpoint's header describes it: no bytes.
struct TensorSpec {
  std::string name;            ///< in the checkpoint
  Dtype dtype = Dtype::kF32;   ///< of its elements
  std::vector<int64_t> shape;  ///< row-major; empty: one element
};

/// Bytes of the tensor, or nullopt if a dimension is negative, the product overflows int64 (zeros counted as
/// ones, as strides count them) or is no whole number of bytes.
SLIM_API std::optional<int64_t> byte_size(const TensorSpec&);
/// "[4096, 1024]"
SLIM_API std::string shape_string(const std::vector<int64_t>&);

}  // namespace slim
