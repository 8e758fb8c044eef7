#include "common/input/vision_processor.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "common/image/resize.hpp"

namespace slim::model {
namespace {

constexpr double kMaxAspectRatio = 200;
/// Beyond this a resized image would not fit into memory anyway; it keeps all products inside int64.
constexpr int64_t kMaxSide = int64_t{1} << 31;

/// Of a resized image, or of all frames of a video: twice what any published processor asks for. A processor's file may say anything.
constexpr int64_t kMostPixels = int64_t{1} << 25;

std::string text(ImageSize size) { return std::to_string(size.width) + " x " + std::to_string(size.height); }

/// A multiple of `factor` from a side that is already divided by it.
int64_t multiple(double side, int64_t factor) { return static_cast<int64_t>(side) * factor; }

int64_t nearest(int64_t side, int64_t factor) {
  return multiple(std::nearbyint(static_cast<double>(side) / static_cast<double>(factor)), factor);
}

Status check_ratio(ImageSize size) {
  const auto [shorter, longer] = std::minmax(size.height, size.width);
  if (shorter < 1 || longer > kMaxSide) {
    return {Code::kInvalidArgument, "an image of " + text(size) + " pixels cannot be resized; leave it out"};
  }
  if (static_cast<double>(longer) / static_cast<double>(shorter) <= kMaxAspectRatio) return {};
  return {Code::kInvalidArgument, "an image of " + text(size) +
                                      " pixels has an aspect ratio over 200, which the model's " +
                                      "image processor refuses; crop it or leave it out"};
}

/// Brings `rounded` between the bounds, starting from the exact `size`; `frames` of both count (1 for
/// images).
Result<ImageSize> bounded(ImageSize size, ImageSize rounded, int64_t frames, int64_t rounded_frames,
                          int64_t factor, int64_t min_pixels, int64_t max_pixels) {
  const auto side = static_cast<double>(factor);
  const auto area = static_cast<double>(frames * size.height * size.width);
  const int64_t rounded_area = rounded_frames * rounded.height * rounded.width;
  if (rounded_area > max_pixels) {
    const double beta = std::sqrt(area / static_cast<double>(max_pixels));
    const auto shrink = [&](int64_t s) {
      return std::max(factor, multiple(std::floor(s / beta / side), factor));
    };
    rounded = {shrink(size.height), shrink(size.width)};
  } else if (rounded_area < min_pixels) {
    const double beta = std::sqrt(static_cast<double>(min_pixels) / area);
    const auto grow = [&](int64_t s) { return multiple(std::ceil(s * beta / side), factor); };
    rounded = {grow(size.height), grow(size.width)};
  }
  const bool huge = static_cast<double>(rounded.height) * static_cast<double>(rounded.width) *
                        static_cast<double>(rounded_frames) >
                    static_cast<double>(kMostPixels);
  if (huge)
    return Status(Code::kInvalidArgument, "an image of " + text(size) + " pixels would be resized to " +
                                              text(rounded) + ", over the limit of " +
                                              std::to_string(kMostPixels) +
                                              " pixels; look at the sizes in preprocessor_config.json");
  if (rounded.height > 0 && rounded.width > 0) return rounded;
  return Status(Code::kInvalidArgument, "an image of " + text(size) + " pixels would be resized to " +
                                            text(rounded) + " with min_pixels " + std::to_string(min_pixels) +
                                            "; set a larger min_pixels or leave it out");
}

}  // namespace

Result<ImageSize> smart_resize(ImageSize size, int64_t factor, int64_t min_pixels, int64_t max_pixels) {
  SLIM_TRY(check_ratio(size));
  const ImageSize rounded = {nearest(size.height, factor), nearest(size.width, factor)};
  return bounded(size, rounded, 1, 1, factor, min_pixels, max_pixels);
}

Result<ImageSize> smart_resize_video(int64_t frames, ImageSize size, int64_t temporal_factor, int64_t factor,
                                     int64_t min_pixels, int64_t max_pixels) {
  if (frames < temporal_factor) {
    return Status(Code::kInvalidArgument, "a video of " + std::to_string(frames) +
                                              " frames is too short; give at least " +
                                              std::to_string(temporal_factor) + " frames");
  }
  if (size.height > 0 && size.width > 0 && (size.height < factor || size.width < factor)) {
    const double scale =
        std::max(static_cast<double>(factor) / size.height, static_cast<double>(factor) / size.width);
    size = {static_cast<int64_t>(size.height * scale), static_cast<int64_t>(size.width * scale)};
  }
  SLIM_TRY(check_ratio(size));
  const ImageSize rounded = {nearest(size.height, factor), nearest(size.width, factor)};
  return bounded(size, rounded, frames, nearest(frames, temporal_factor), factor, min_pixels, max_pixels);
}

namespace {

Status check_frames(const std::vector<at::Tensor>& frames) {
  if (frames.empty())
    return {Code::kInvalidArgument, "a video without frames cannot be processed; leave it out"};
  for (const at::Tensor& frame : frames) {
    if (frame.dim() != 3 || frame.size(2) != 3 || frame.scalar_type() != at::kByte) {
      return {Code::kInternal, "patches are made of uint8 [height, width, 3] images only"};
    }
    if (frame.sizes() != frames.front().sizes()) {
      return {Code::kInvalidArgument, "a frame of " + text({frame.size(0), frame.size(1)}) +
                                          " pixels follows one of " +
                                          text({frames[0].size(0), frames[0].size(1)}) +
                                          " pixels; all frames of a video must have one size"};
    }
  }
  return {};
}

/// max_pixels with the bound that qwen-vl-utils puts on the frames of a video.
int64_t capped_max_pixels(int64_t frames, const PatchOptions& options) {
  if (!options.cap_pixels_per_frame) return options.max_pixels;
  const int64_t token = options.factor() * options.factor();
  const auto least = static_cast<int64_t>(static_cast<double>(options.min_pixels) * 1.05);
  if (options.budget == PixelBudget::kVideo) {
    return std::max(std::min(options.max_video_tokens * token, options.max_pixels / frames), least) * frames;
  }
  const auto total = static_cast<int64_t>(static_cast<double>(options.max_video_tokens * token) * 0.9);
  return std::max(std::min(options.max_pixels, total * options.temporal_patch_size / frames), least);
}

int64_t temporal_patches(int64_t frames, const PatchOptions& options) {
  return (frames + options.temporal_patch_size - 1) / options.temporal_patch_size;
}

int64_t patches_of(int64_t frames, ImageSize size, const PatchOptions& options) {
  return temporal_patches(frames, options) * (size.height / options.patch_size) *
         (size.width / options.patch_size);
}

Result<ImageSize> checkpoint_size(int64_t frames, ImageSize size, const PatchOptions& options, bool video) {
  if (!options.resize) {
    if (size.height % options.factor() == 0 && size.width % options.factor() == 0) return size;
    return Status(Code::kInvalidArgument,
                  "an image of " + text(size) + " pixels is no multiple of " +
                      std::to_string(options.factor()) +
                      " and the checkpoint says do_resize false; resize it or leave it out");
  }
  const int64_t max_pixels = video ? capped_max_pixels(frames, options) : options.max_pixels;
  if (!video || options.budget == PixelBudget::kFrame) {
    return smart_resize(size, options.factor(), options.min_pixels, max_pixels);
  }
  return smart_resize_video(frames, size, options.temporal_patch_size, options.factor(), options.min_pixels,
                            max_pixels);
}

/// The largest size that keeps to max_patches, with the image's proportions.
Result<ImageSize> size_within_cap(int64_t frames, ImageSize size, const PatchOptions& options) {
  const int64_t max_pixels =
      options.max_patches / temporal_patches(frames, options) * options.patch_size * options.patch_size;
  ImageSize smaller;
  if (max_pixels > 0) {
    SLIM_ASSIGN(smaller, smart_resize(size, options.factor(), /*min_pixels=*/1, max_pixels));
  }
  if (max_pixels > 0 && patches_of(frames, smaller, options) <= options.max_patches) return smaller;
  return Status(Code::kInvalidArgument, "an image of " + text(size) + " pixels in " + std::to_string(frames) +
                                            " frames cannot be made smaller than the " +
                                            std::to_string(options.max_patches) +
                                            " patches allowed; allow more tokens per sample or leave it out");
}

/// Rescaled and normalized in one step, with the constants in fp32: (x - mean / scale) / (std / scale).
at::Tensor normalized(const at::Tensor& pixels, const PatchOptions& options) {
  const at::Tensor x = pixels.to(at::kFloat);
  if (!options.normalize) return options.rescale ? x * options.rescale_factor : x;
  const double scale = options.rescale ? 1.0 / options.rescale_factor : 1.0;
  const auto constant = [&](const std::array<double, 3>& values) {
    return (at::tensor(at::ArrayRef<double>(values), at::kFloat) * scale).view({3, 1, 1});
  };
  return x.sub(constant(options.mean)).div_(constant(options.std));
}

/// [frames, 3, height, width] to rows of patches; frames is a multiple of temporal_patch_size.
at::Tensor patches_from(const at::Tensor& x, const PatchOptions& options) {
  const int64_t patch = options.patch_size, merge = options.merge_size,
                temporal = options.temporal_patch_size;
  const int64_t side = options.factor();
  return x
      .reshape(
          {x.size(0) / temporal, temporal, 3, x.size(2) / side, merge, patch, x.size(3) / side, merge, patch})
      .permute({0, 3, 6, 4, 7, 2, 1, 5, 8})
      .reshape({-1, 3 * temporal * patch * patch});
}

/// [frames, 3, height, width] with the last frame repeated until `frames` is a multiple of
/// temporal_patch_size.
at::Tensor filled_up(const at::Tensor& x, const PatchOptions& options) {
  const int64_t missing = temporal_patches(x.size(0), options) * options.temporal_patch_size - x.size(0);
  return missing == 0 ? x : at::cat({x, x.slice(0, -1).expand({missing, -1, -1, -1})});
}

Result<PatchedImage> patch(const std::vector<at::Tensor>& frames, const PatchOptions& options, bool video) {
  SLIM_TRY(check_frames(frames));
  const auto count = static_cast<int64_t>(frames.size());
  const ImageSize given = {frames[0].size(0), frames[0].size(1)};
  SLIM_ASSIGN(ImageSize size, checkpoint_size(count, given, options, video));
  PatchedImage result;
  if (options.max_patches > 0 && patches_of(count, size, options) > options.max_patches) {
    SLIM_ASSIGN(size, size_within_cap(count, given, options));
    result.downscaled = true;
  }
  const at::Tensor stacked = at::stack(frames).permute({0, 3, 1, 2});  // a channels-last view: no copy
  const at::Tensor resized = resize_bicubic(stacked, size.height, size.width);
  result.pixel_values = patches_from(filled_up(normalized(resized, options), options), options);
  result.grid = {temporal_patches(count, options), size.height / options.patch_size,
                 size.width / options.patch_size};
  return result;
}

}  // namespace

Result<PatchedImage> patch_image(const at::Tensor& image, const PatchOptions& options) {
  return patch({image}, options, /*video=*/false);
}

Result<PatchedImage> patch_video(const std::vector<at::Tensor>& frames, const PatchOptions& options) {
  return patch(frames, options, /*video=*/true);
}

}  // namespace slim::model
