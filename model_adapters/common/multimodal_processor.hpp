#pragma once
#include <memory>
#include <string>
#include <vector>

#include "slim/adapter.hpp"

namespace slim::model {

class Tokenizer;

/// How a model family writes images into its prompt.
struct MultimodalPrompt {
  std::string image_token =
      "<|image_pad|>";  ///< stands once per image in the rendered chat; expanded to one per merged patch
  std::string end_of_turn = "<|im_end|>";  ///< stop token where tokenizer_config.json names no eos_token
};

/// Tokenizer, chat template and image preprocessing of a Qwen-VL checkpoint folder. Samples hold "input_ids"
/// and with images
/// "pixel_values" and "image_grid_thw". Over max_tokens the text after the last image is cut first; if the
/// images do not fit, the largest are made smaller until they do.
Result<std::unique_ptr<Processor>> make_multimodal_processor(const std::string& folder,
                                                             const MultimodalPrompt&);

/// Token ids that end an answer: the tokenizer's eos_token (or `end_of_turn`), then eos_token_id of
/// generation_config.json, or else of config.json or its text_config, each once.
Result<std::vector<int64_t>> read_stop_tokens(const std::string& folder, const Tokenizer&,
                                              const std::string& end_of_turn);

}  // namespace slim::model
