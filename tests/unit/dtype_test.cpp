#include "slim/dtype.hpp"

#include <c10/core/ScalarType.h>
#include <doctest/doctest.h>

#include <limits>
#include <set>

using namespace slim;

namespace {
constexpr int kCount = static_cast<int>(Dtype::kF8E5M2FNUZ) + 1;
}

TEST_CASE("dtype/ names are distinct and lead back to their type") {
  std::set<std::string_view> names;
  for (int i = 0; i < kCount; ++i) {
    const auto dtype = static_cast<Dtype>(i);
    CHECK(names.insert(dtype_name(dtype)).second);
    CHECK(dtype_from_name(dtype_name(dtype)) == dtype);
  }
  CHECK(names.size() == 22);
}

TEST_CASE("dtype/ a name that the format does not have is none") {
  for (const char* name : {"", "bf16", "BF16 ", "F8", "I4", "C128"})
    CHECK_FALSE(dtype_from_name(name).has_value());
}

TEST_CASE("dtype/ LibTorch's type has as many bits and leads back; sub-byte floats have none") {
  for (int i = 0; i < kCount; ++i) {
    const auto dtype = static_cast<Dtype>(i);
    const auto type = to_scalar_type(dtype);
    CHECK(type.has_value() == (dtype_bits(dtype) >= 8));
    if (!type) continue;
    CHECK(static_cast<int>(c10::elementSize(*type)) * 8 == dtype_bits(dtype));
    CHECK(from_scalar_type(*type) == dtype);
  }
  CHECK_FALSE(from_scalar_type(c10::ScalarType::ComplexDouble).has_value());
}

TEST_CASE("dtype/ byte_size is elements times bits") {
  CHECK(byte_size({"x", Dtype::kBF16, {3, 5}}) == 30);
  CHECK(byte_size({"scalar", Dtype::kF64, {}}) == 8);
  CHECK(byte_size({"empty", Dtype::kF32, {4, 0}}) == 0);
  CHECK(byte_size({"fp4", Dtype::kF4, {3, 2}}) == 3);
  CHECK(byte_size({"fp6", Dtype::kF6E2M3, {4}}) == 3);
  CHECK(byte_size({"largest", Dtype::kU8, {std::numeric_limits<int64_t>::max()}}) ==
        std::numeric_limits<int64_t>::max());
}

TEST_CASE("dtype/ byte_size refuses what cannot be a size") {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  CHECK_FALSE(byte_size({"negative", Dtype::kU8, {-1}}).has_value());
  CHECK_FALSE(byte_size({"negatives", Dtype::kU8, {-2, -2}}).has_value());
  CHECK_FALSE(byte_size({"bytes overflow", Dtype::kF64, {int64_t{1} << 60}}).has_value());
  CHECK_FALSE(byte_size({"overflow", Dtype::kU8, {kMax, 2}}).has_value());
  CHECK_FALSE(byte_size({"wraps to 0", Dtype::kU8, {int64_t{1} << 32, int64_t{1} << 32}}).has_value());
  CHECK_FALSE(
      byte_size({"strides overflow", Dtype::kU8, {int64_t{1} << 62, int64_t{1} << 62, 0}}).has_value());
  CHECK_FALSE(byte_size({"half a byte", Dtype::kF4, {3}}).has_value());
  CHECK_FALSE(byte_size({"bits left", Dtype::kF6E3M2, {3}}).has_value());
}

TEST_CASE("dtype/ shapes are printed as lists") {
  CHECK(shape_string({}) == "[]");
  CHECK(shape_string({4096, 1024}) == "[4096, 1024]");
}
