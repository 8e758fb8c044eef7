#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "slim/status.hpp"

/// Images and videos to patches, as transformers' Qwen2VLImageProcessor, Qwen2VLVideoProcessor and
/// Qwen3VLVideoProcessor (torchvision backend) make them for Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
namespace slim::model {

/// Which pixels min_pixels and max_pixels count when a video is resized.
enum class PixelBudget : uint8_t {
  kFrame,  ///< those of one frame: all images, and Qwen2VLVideoProcessor
  kVideo   ///< those of all frames together: Qwen3VLVideoProcessor
};

/// The part of preprocessor_config.json that decides pixel_values. The defaults are those of
/// Qwen2VLImageProcessor.
struct PatchOptions {
  int64_t patch_size = 14;              ///< pixels
  int64_t temporal_patch_size = 2;      ///< frames per patch; a still image is repeated
  int64_t merge_size = 2;               ///< patches per token, along height and along width
  int64_t min_pixels = 56 * 56;         ///< `size.shortest_edge`, in spite of that name an area
  int64_t max_pixels = 28 * 28 * 1280;  ///< `size.longest_edge`
  PixelBudget budget = PixelBudget::kFrame;
  bool resize = true;   ///< do_resize; false: sizes must already be multiples of patch_size * merge_size
  bool rescale = true;  ///< do_rescale: multiply by rescale_factor
  double rescale_factor = 1.0 / 255.0;
  bool normalize = true;  ///< do_normalize: (x - mean) / std after rescaling
  std::array<double, 3> mean = {0.48145466, 0.4578275, 0.40821073};
  std::array<double, 3> std = {0.26862954, 0.26130258, 0.27577711};
  bool cap_pixels_per_frame = false;  ///< videos: bound the frames as qwen-vl-utils does
  int64_t max_video_tokens = 0;       ///< videos: the bound of cap_pixels_per_frame, in tokens
  /// The caller's cap, not part of the checkpoint: images and videos that would give more patches are made
  /// smaller. 0: none. A token is merge_size * merge_size patches.
  int64_t max_patches = 0;

  int64_t factor() const { return patch_size * merge_size; }
};

/// Pixels in the layout the vision tower's patch embedding takes.
struct PatchedImage {
  /// fp32 [grid_t * grid_h * grid_w, channels * temporal_patch_size * patch_size * patch_size]. The
  /// merge_size * merge_size patches of one token lie next to each other; a row is ordered channel, frame, y,
  /// x.
  at::Tensor pixel_values;
  std::array<int64_t, 3> grid = {0, 0, 0};  ///< patches over time, height, width
  bool downscaled = false;  ///< max_patches made it smaller than the checkpoint's own options would

  int64_t patches() const { return grid[0] * grid[1] * grid[2]; }
};

struct ImageSize {
  int64_t height = 0, width = 0;
  bool operator==(const ImageSize&) const = default;
};

/// The options of a checkpoint's image processor: `image_processor` of processor_config.json if it is there,
/// or else preprocessor_config.json. Reads both dialects, `min_pixels`/`max_pixels` (which win) and
/// `size.shortest_edge`/`size.longest_edge`; absent keys take the defaults above, as in transformers.
/// Errors name file and key: kNotFound, kCorrupt (no JSON), kInvalidArgument (a value), kUnsupported (another
/// processor or another resampling filter).
Result<PatchOptions> read_image_options(const std::string& folder);

/// The same for videos: `video_processor` of processor_config.json, video_preprocessor_config.json,
/// preprocessor_config.json, in this order. Its `video_processor_type` decides the budget, `budget` where it
/// is absent; each budget has the defaults of its class in transformers.
Result<PatchOptions> read_video_options(const std::string& folder, PixelBudget budget);

/// Options from the text of one JSON object; `name` is what messages call it.
Result<PatchOptions> parse_image_options(std::string_view json, std::string_view name);
Result<PatchOptions> parse_video_options(std::string_view json, std::string_view name, PixelBudget budget);

/// The size an image is resized to: multiples of `factor` near the given size with an area in [min_pixels,
/// max_pixels] as far as possible. Rounds as Python does (half to even). Error: an aspect ratio over 200, or
/// a side that becomes 0.
Result<ImageSize> smart_resize(ImageSize size, int64_t factor, int64_t min_pixels, int64_t max_pixels);

/// The size the frames of a video are resized to when the budget counts all frames (Qwen3VLVideoProcessor).
Result<ImageSize> smart_resize_video(int64_t frames, ImageSize size, int64_t temporal_factor, int64_t factor,
                                     int64_t min_pixels, int64_t max_pixels);

/// @param image uint8 [height, width, 3] RGB on the CPU, as decode_image gives it
/// Errors: smart_resize's; max_patches cannot be met.
Result<PatchedImage> patch_image(const at::Tensor& image, const PatchOptions& options);

/// @param frames at least one, all of one size, each as for patch_image. The last frame is repeated until their
/// number is a multiple of temporal_patch_size; with PixelBudget::kVideo at least that many must be given, as
/// transformers asks.
Result<PatchedImage> patch_video(const std::vector<at::Tensor>& frames, const PatchOptions& options);

}  // namespace slim::model
