#pragma once
#include <memory>
#include <span>
#include <string>

#include "common/models/decoder.hpp"
#include "slim/adapter.hpp"

namespace slim::model {

/// Tokenizer and chat template of the checkpoint folder of a text-only model. Samples hold "input_ids". Text
/// beyond max_tokens is cut at the end; chats with images or videos are kUnsupported. `end_of_turn`: stop token
/// where tokenizer_config.json names no eos_token.
Result<std::unique_ptr<Processor>> make_text_processor(const std::string& folder,
                                                       const std::string& end_of_turn);

/// All of a text-only architecture but its plan(), which makes the decoder.
class TextAdapter : public ModelAdapter {
 public:
  Result<std::unique_ptr<Processor>> processor(const std::string& folder) const override;
  Result<Carry> begin(std::span<const Sample> samples, Exec&) override;
  Status enter(std::string_view stage, Exec&, Carry&) override;
  Status forward(const BlockPlan&, Exec&, Carry&) override;
  Result<at::Tensor> forward_region(const BlockPlan&, RegionId, Exec&, const Carry&,
                                    const at::Tensor& x) override;
  Result<Carry> next(const Carry& previous, const at::Tensor& token_ids, Exec&) override;

 protected:
  std::unique_ptr<Decoder> decoder_;
  std::string end_of_turn_;
};

}  // namespace slim::model
