#pragma once
#include <memory>
#include <string>
#include <vector>

#include "slim/adapter.hpp"

namespace slim::model {

class Tokenizer;

/// How a model family writes images and videos into its prompt.
struct MultimodalPrompt {
  /// Stand once per image or video in the rendered chat; expanded to one per merged patch.
  std::string image_token = "<|image_pad|>", video_token = "<|video_pad|>";
  std::string end_of_turn = "<|im_end|>";  ///< stop token where tokenizer_config.json names no eos_token
  /// Qwen3-VL: every grid of a video follows its time, between tokens of its own ("<0.1 seconds>").
  bool split_frames = false;
  std::string frame_start = "<|vision_start|>", frame_end = "<|vision_end|>";
  bool seconds_per_grid = false;  ///< Qwen2.5-VL: samples hold "second_per_grid_ts"
};

/// Tokenizer, chat template and image preprocessing of a Qwen-VL checkpoint folder. Samples hold "input_ids",
/// with images "pixel_values" and "image_grid_thw", and with videos "pixel_values_videos" and "video_grid_thw"
/// (and "second_per_grid_ts"). The frames of a video are taken as they are, none left out, and as 24 a second:
/// what transformers does with lists of frames and do_sample_frames=False. Over max_tokens the text after the
/// last image or video is cut first; if those do not fit, the largest are made smaller until they do.
Result<std::unique_ptr<Processor>> make_multimodal_processor(const std::string& folder,
                                                             const MultimodalPrompt&);

/// Token ids that end an answer: the tokenizer's eos_token (or `end_of_turn`), then eos_token_id of
/// generation_config.json, or else of config.json or its text_config, each once.
Result<std::vector<int64_t>> read_stop_tokens(const std::string& folder, const Tokenizer&,
                                              const std::string& end_of_turn);

}  // namespace slim::model
