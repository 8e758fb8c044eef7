#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "slim/adapter.hpp"

/// What the Qwen-VL families share between samples and blocks: collating samples whose image tokens stand for
/// patches.
namespace slim::model {

struct MultimodalTokens {
  int64_t image_token = -1, video_token = -1;
  int64_t merge = 2;           ///< patches per token, along height and along width
  int64_t patch_features = 0;  ///< columns of pixel_values
  bool split_frames = false;   ///< every frame of a video stands alone between text tokens (Qwen3-VL)
  int64_t tokens_per_second =
      0;  ///< temporal distance of video frames (Qwen2.5-VL, with the sample's second_per_grid_ts); 0: 1
};

/// A batch: all sequences one after the other, and all their images and videos.
struct MultimodalBatch {
  at::Tensor input_ids;      ///< int64 [tokens]
  at::Tensor lengths;        ///< int64 [sequences]
  at::Tensor positions;      ///< int64 [3, tokens]
  at::Tensor next_position;  ///< int64 [sequences]
  at::Tensor pixels;         ///< [patches, patch_features], the samples' dtype
  at::Tensor grid_thw;       ///< int64 [images and videos, 3], in the order of pixels
  at::Tensor visual_rows;    ///< int64 [merged patches]: the token that each merged patch stands for
};

/// Reads of every sample "input_ids", and if there are any "pixel_values" with "image_grid_thw",
/// "pixel_values_videos" with
/// "video_grid_thw" (and "second_per_grid_ts"). All tensors stay on the CPU. Errors name the sample: no
/// tokens, grids that do not fit the pixels, and image tokens that do not match the patches (with both
/// counts).
Result<MultimodalBatch> collate(std::span<const Sample> samples, const MultimodalTokens& tokens);

}  // namespace slim::model
