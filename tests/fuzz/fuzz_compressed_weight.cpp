#include <ATen/ATen.h>

#include "compress/weight_codec.h"
#include "input.h"

using namespace slim;

namespace {

at::Tensor matrix(fuzz::Choices& choices) {
  const int64_t n = 1 + static_cast<int64_t>(choices.below(200)),
                k = 1 + static_cast<int64_t>(choices.below(300));
  at::Tensor weight = at::zeros({n, k}, at::kChar);
  const size_t different = choices.below(256);
  int8_t* codes = weight.data_ptr<int8_t>();
  for (int64_t i = 0; i < n * k && different > 0; ++i)
    codes[i] = static_cast<int8_t>(i * i % 251 % static_cast<int64_t>(different));
  return weight;
}

void damage(fuzz::Choices& choices, CompressedWeight& stored) {
  const at::Tensor target = std::array{stored.weight, stored.index, stored.info}[choices.below(3)];
  if (target.nbytes() == 0) return;
  const size_t at = choices.number(4) % target.nbytes();
  static_cast<uint8_t*>(target.data_ptr())[at] ^= choices.byte();
}

}  // namespace

/// A compressed matrix with damaged bytes, or cut.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Choices choices({data, size});
  const at::Tensor weight = matrix(choices);
  CompressedWeight stored = compress_weight(weight);
  const int64_t cut = static_cast<int64_t>(choices.below(4));
  const bool whole = choices.empty() && cut == 0;
  stored.weight = stored.weight.slice(0, 0, std::max<int64_t>(stored.weight.numel() - cut, 0)).clone();
  while (!choices.empty()) damage(choices, stored);
  const auto restored = decompress_weight(stored);
  FUZZ_REQUIRE(!whole || (restored.ok() && at::equal(*restored, weight)));
  FUZZ_REQUIRE(!restored.ok() ||
               restored->numel() <= 8 * stored.weight.numel() +
                                        8 * kFractalRows * kFractalColumns * kTileFractals * kTileFractals);
  return 0;
}
