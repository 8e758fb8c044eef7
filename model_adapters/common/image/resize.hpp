#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace slim::model {

/// Antialiased bicubic resampling of uint8 images, as torchvision's v2 `resize(BICUBIC, antialias=True)` does
/// on the CPU: LibTorch's integer kernel, so results are rounded and clamped to 0..255 between the two passes
/// and at the end.
/// @param images uint8 [n, channels, height, width], any memory format
/// @return uint8 [n, channels, new_height, new_width]; the input itself where the size is unchanged. Sizes
/// are at least 1.
at::Tensor resize_bicubic(const at::Tensor& images, int64_t new_height, int64_t new_width);

}  // namespace slim::model
