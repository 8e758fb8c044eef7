#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "slim/status.hpp"

/// Decoding of JPEG, PNG and WebP to the very pixels that Pillow's `Image.open(file).convert("RGB")` gives.
namespace slim::model {

/// What an image of unknown origin may cost.
struct ImageLimits {
  int64_t max_pixels = 178'956'970;  ///< width * height; the default is where Pillow 13 refuses an image
  int64_t max_file_bytes = int64_t{1} << 30;  ///< of read_image
};

/// Whether the EXIF orientation tag (0x0112) turns the image. kAsStored is the default because transformers'
/// torchvision image processors do not turn images, neither those they read from a path nor Pillow images
/// handed to them. kFromExif is what `PIL.ImageOps.exif_transpose` does for a tag in the EXIF block (not one
/// in XMP).
enum class Orientation : uint8_t { kAsStored, kFromExif };

/// Decodes one JPEG, PNG or WebP image; the content decides which it is, never the name.
/// Returns a contiguous uint8 [height, width, 3] RGB tensor on the CPU. As in Pillow: alpha and transparent
/// colours are dropped, 16-bit gray is clipped to 255, 16-bit colour keeps its high byte, of an animation the
/// first frame is taken, colour profiles and gamma are ignored, and truncated files are errors. One
/// exception: a progressive JPEG that lacks its last scans may differ by a few levels from Pillow if
/// libjpeg-turbo is older than 3.0.1, which corrected its smoothing.
/// @param bytes the whole file; not kept
/// @param name  how messages call it ("images/cat.jpg")
/// Errors: kCorrupt (damaged or truncated), kUnsupported (another format), kInvalidArgument (over a limit).
/// Safe on hostile input; may be called from several threads.
Result<at::Tensor> decode_image(std::string_view bytes, std::string_view name, const ImageLimits& limits = {},
                                Orientation orientation = Orientation::kAsStored);

/// Reads a file and decodes it. Errors: those of decode_image, kNotFound, kIo.
Result<at::Tensor> read_image(const std::string& path, const ImageLimits& limits = {},
                              Orientation orientation = Orientation::kAsStored);

}  // namespace slim::model
