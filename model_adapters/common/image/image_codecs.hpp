#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "common/image/image.hpp"
#include "slim/status.hpp"

/// What decode_image is made of. Every decoder takes a whole file of its own format, checks the limits before
/// it allocates pixels, and returns uint8 [height, width, 3]; none keeps `bytes`.
namespace slim::model::codec {

struct Source {
  std::string_view bytes;
  std::string_view name;
  ImageLimits limits;

  /// "cat.jpg: JPEG image is damaged: <detail>; ..."
  Status damaged(std::string_view format, std::string_view detail) const;
  Status truncated(std::string_view format) const;
  Status unsupported(std::string_view what) const;
};

Result<at::Tensor> decode_jpeg(const Source& source);
Result<at::Tensor> decode_png(const Source& source);
Result<at::Tensor> decode_webp(const Source& source);

/// An uninitialized uint8 [height, width, channels], if height * width keeps to the limits.
Result<at::Tensor> new_pixels(const Source& source, int64_t height, int64_t width, int64_t channels);

/// The EXIF orientation, 1 to 8, of a JPEG, PNG or WebP file; 1 where there is none or it is not readable.
int exif_orientation(std::string_view bytes);

}  // namespace slim::model::codec
