#include "common/image/resize.hpp"

#include <ATen/ops/_upsample_bicubic2d_aa.h>

namespace slim::model {

at::Tensor resize_bicubic(const at::Tensor& images, int64_t new_height, int64_t new_width) {
  if (images.size(2) == new_height && images.size(3) == new_width) return images;
  // The kernel gives the same pixels for both memory formats, but only from this one an image of a single
  // pixel.
  const at::Tensor interleaved = images.contiguous(at::MemoryFormat::ChannelsLast);
  return at::_upsample_bicubic2d_aa(interleaved, {new_height, new_width}, /*align_corners=*/false);
}

}  // namespace slim::model
