#include "slim/dtype.hpp"

#include <algorithm>
#include <array>

namespace slim {
namespace {

struct DtypeFacts {
  Dtype dtype;
  std::string_view name;
  int bits;
  std::optional<c10::ScalarType> torch;
};

using enum c10::ScalarType;
constexpr std::array kDtypes = {
    DtypeFacts{Dtype::kBool, "BOOL", 8, Bool},
    DtypeFacts{Dtype::kU8, "U8", 8, Byte},
    DtypeFacts{Dtype::kI8, "I8", 8, Char},
    DtypeFacts{Dtype::kI16, "I16", 16, Short},
    DtypeFacts{Dtype::kU16, "U16", 16, UInt16},
    DtypeFacts{Dtype::kI32, "I32", 32, Int},
    DtypeFacts{Dtype::kU32, "U32", 32, UInt32},
    DtypeFacts{Dtype::kI64, "I64", 64, Long},
    DtypeFacts{Dtype::kU64, "U64", 64, UInt64},
    DtypeFacts{Dtype::kF16, "F16", 16, Half},
    DtypeFacts{Dtype::kBF16, "BF16", 16, BFloat16},
    DtypeFacts{Dtype::kF32, "F32", 32, Float},
    DtypeFacts{Dtype::kF64, "F64", 64, Double},
    DtypeFacts{Dtype::kC64, "C64", 64, ComplexFloat},
    DtypeFacts{Dtype::kF8E4M3, "F8_E4M3", 8, Float8_e4m3fn},
    DtypeFacts{Dtype::kF8E5M2, "F8_E5M2", 8, Float8_e5m2},
    DtypeFacts{Dtype::kF8E8M0, "F8_E8M0", 8, Float8_e8m0fnu},
    DtypeFacts{Dtype::kF4, "F4", 4, std::nullopt},
    DtypeFacts{Dtype::kF6E2M3, "F6_E2M3", 6, std::nullopt},
    DtypeFacts{Dtype::kF6E3M2, "F6_E3M2", 6, std::nullopt},
    DtypeFacts{Dtype::kF8E4M3FNUZ, "F8_E4M3FNUZ", 8, Float8_e4m3fnuz},
    DtypeFacts{Dtype::kF8E5M2FNUZ, "F8_E5M2FNUZ", 8, Float8_e5m2fnuz},
};

constexpr bool in_order_of_the_enum() {
  for (size_t i = 0; i < kDtypes.size(); ++i) {
    if (static_cast<size_t>(kDtypes[i].dtype) != i) return false;
  }
  return true;
}
static_assert(in_order_of_the_enum());

const DtypeFacts& facts(Dtype dtype) { return kDtypes.at(static_cast<size_t>(dtype)); }

}  // namespace

std::string_view dtype_name(Dtype dtype) { return facts(dtype).name; }

std::optional<Dtype> dtype_from_name(std::string_view name) {
  const auto* found = std::ranges::find(kDtypes, name, &DtypeFacts::name);
  return found == kDtypes.end() ? std::nullopt : std::optional(found->dtype);
}

int dtype_bits(Dtype dtype) { return facts(dtype).bits; }

std::optional<c10::ScalarType> to_scalar_type(Dtype dtype) { return facts(dtype).torch; }

std::optional<Dtype> from_scalar_type(c10::ScalarType type) {
  const auto* found = std::ranges::find(kDtypes, std::optional(type), &DtypeFacts::torch);
  return found == kDtypes.end() ? std::nullopt : std::optional(found->dtype);
}

std::optional<int64_t> byte_size(const TensorSpec& spec) {
  int64_t elements = 1;
  bool empty = false;
  for (const int64_t dim : spec.shape) {
    if (dim < 0 || __builtin_mul_overflow(elements, std::max<int64_t>(dim, 1), &elements))
      return std::nullopt;
    empty |= dim == 0;
  }
  const __int128 bits = static_cast<__int128>(elements) * dtype_bits(spec.dtype);
  if (bits / 8 > INT64_MAX) return std::nullopt;
  if (empty) return 0;
  return bits % 8 == 0 ? std::optional(static_cast<int64_t>(bits / 8)) : std::nullopt;
}

std::string shape_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace slim
