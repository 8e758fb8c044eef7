#pragma once
#include "common/image/image_codecs.hpp"
#include "input.h"

namespace slim::fuzz {

constexpr int64_t kMaxPixels = 1 << 16;

/// Decodes; what succeeds is an image within the limit.
inline void check_image(Result<at::Tensor> (*decode)(const model::codec::Source&), std::string_view bytes) {
  const auto image = decode({bytes, "image", {.max_pixels = kMaxPixels}});
  const int turn = model::codec::exif_orientation(bytes);
  FUZZ_REQUIRE(turn >= 1 && turn <= 8);
  if (!image.ok()) return;
  FUZZ_REQUIRE(image->dim() == 3 && image->size(2) == 3 && image->numel() <= 3 * kMaxPixels);
  (void)image->sum().item<int64_t>();
}

}  // namespace slim::fuzz
