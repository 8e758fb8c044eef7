#include "common/bit_stream.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace slim::formats;

TEST_CASE("bit_stream/ packing is undone by unpacking, for every width and length") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int64_t count : {1, 7, 31, 32, 33, 100}) {
      const at::Tensor codes = at::randint(-(1 << (bits - 1)), 1 << (bits - 1), {3, count}, at::kChar);
      const at::Tensor words = pack_rows(codes, bits);
      CHECK(words.size(1) == (count * bits + 31) / 32);
      CHECK(at::equal(unpack_rows(words, bits, count), codes));
    }
  }
}

TEST_CASE("bit_stream/ value k of a stream takes the bits k*b and up, offset by half the range") {
  CHECK(pack_rows(at::tensor({-8, -7, 7}, at::kChar).view({1, 3}), 4)[0][0].item<int32_t>() == 0xf10);
  // Eleven values of three bits: the last straddles two words.
  at::Tensor codes = at::full({1, 11}, -4, at::kChar);
  codes[0][10] = 3;
  const at::Tensor words = pack_rows(codes, 3);
  CHECK(static_cast<uint32_t>(words[0][0].item<int32_t>()) == 0xC0000000u);
  CHECK(words[0][1].item<int32_t>() == 1);
}
