#include <ATen/ATen.h>

#include "common/decoder.hpp"
#include "common/multimodal.hpp"
#include "common/multimodal_processor.hpp"
#include "slim/plugin.hpp"
#include "vision.hpp"

namespace slim::qwen3vl {

/// Qwen3-VL: a vision tower whose merged patches take the place of image tokens, DeepStack features added
/// after the first language layers (arXiv:2406.04334), and a Qwen3 decoder with interleaved M-RoPE.
class Qwen3Vl final : public ModelAdapter {
 public:
  Result<ModelPlan> plan(std::string_view config_json,
                         const std::map<std::string, TensorSpec>& tensors) override;
  Result<std::unique_ptr<Processor>> processor(const std::string& folder) const override;
  Result<Carry> begin(std::span<const Sample> samples, Exec&) override;
  Status enter(std::string_view stage, Exec&, Carry&) override;
  Status forward(const BlockPlan&, Exec&, Carry&) override;
  Result<at::Tensor> forward_region(const BlockPlan&, RegionId, Exec&, const Carry&,
                                    const at::Tensor& x) override;
  Result<Carry> next(const Carry& previous, const at::Tensor& token_ids, Exec&) override;

 private:
  VisionTower vision_;
  std::unique_ptr<model::Decoder> decoder_;
  model::MultimodalTokens tokens_;
  int32_t first_language_block_ = 0;
};

namespace {

model::DecoderConfig read_text(const model::JsonConfig& config) {
  const auto text = config.child("text_config");
  model::DecoderDefaults defaults;
  defaults.head_dim = 128;
  defaults.theta = 500000;
  auto result = model::read_decoder(text, defaults);
  result.prefix = "model.language_model.";
  result.head_norm = model::DecoderConfig::HeadNorm::kBeforeRotary;
  result.tied = config.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", false));
  if (result.rope.sections.empty()) result.rope.sections = {24, 20, 20};
  if (result.rope.sections.size() != 3) text.fail("rope_scaling.mrope_section", "has to have 3 entries");
  result.rope.interleaved = true;
  return result;
}

}  // namespace

Result<ModelPlan> Qwen3Vl::plan(std::string_view config_json,
                                const std::map<std::string, TensorSpec>& tensors) {
  SLIM_ASSIGN(const auto config, model::JsonConfig::parse(config_json, "config.json"));
  const auto vision = read_vision(config.child("vision_config"));
  const auto text = read_text(config);
  if (config.status().ok() && vision.out_hidden != text.hidden) {
    config.fail("vision_config.out_hidden_size", "is " + std::to_string(vision.out_hidden) +
                                                     ", expected text_config.hidden_size " +
                                                     std::to_string(text.hidden));
  }
  tokens_.image_token = config.integer("image_token_id", 151655, 0);
  tokens_.video_token = config.integer("video_token_id", 151656, 0);
  tokens_.merge = vision.merge;
  tokens_.patch_features = vision.patch_features();
  tokens_.split_frames = true;
  const auto family = config.text("model_type", "qwen3_vl");
  SLIM_TRY(config.status());

  vision_ = VisionTower(vision);
  decoder_ = std::make_unique<model::Decoder>(text);
  model::PlanBuilder builder(family, tensors);
  builder.ignore({"re:.*visual\\..*", "re:.*lm_head"});
  vision_.plan(builder);
  first_language_block_ = static_cast<int32_t>(vision.depth + 1);
  decoder_->plan(builder);
  return builder.finish();
}

Result<std::unique_ptr<Processor>> Qwen3Vl::processor(const std::string& folder) const {
  return model::make_multimodal_processor(folder, {});
}

Result<Carry> Qwen3Vl::begin(std::span<const Sample> samples, Exec& exec) {
  SLIM_ASSIGN(auto batch, model::collate(samples, tokens_));
  Carry carry{{"input_ids", batch.input_ids},
              {"sequence_lengths", batch.lengths},
              {"positions", batch.positions},
              {"next_position", batch.next_position},
              {"visual_rows", batch.visual_rows}};
  vision_.begin(batch, exec, carry);
  return carry;
}

Status Qwen3Vl::enter(std::string_view stage, Exec& exec, Carry& carry) {
  if (stage != "language") return {};
  auto embedded = decoder_->embed(exec, carry.at("input_ids"));
  const auto rows = carry.at("visual_rows").to(embedded.device());
  carry["hidden"] = embedded.index_copy(0, rows, carry.at("hidden").to(embedded.scalar_type()));
  carry["lengths"] = carry.at("sequence_lengths");
  decoder_->set_positions(carry, carry.at("positions"), exec);
  for (const char* key : {"input_ids", "sequence_lengths", "positions"}) carry.erase(key);
  return {};
}

Status Qwen3Vl::forward(const BlockPlan& block, Exec& exec, Carry& carry) {
  if (block.stage == "vision") {
    vision_.forward(block, exec, carry);
    return {};
  }
  decoder_->forward(block, exec, carry);
  const auto features = carry.find(deepstack_key(block.index - first_language_block_));
  if (block.stage == "language" && features != carry.end()) {
    auto& hidden = carry.at("hidden");
    hidden = hidden.index_add(0, carry.at("visual_rows").to(hidden.device()),
                              features->second.to(hidden.scalar_type()));
    carry.erase(features);
  }
  return {};
}

Result<at::Tensor> Qwen3Vl::forward_region(const BlockPlan& block, RegionId region, Exec& exec,
                                           const Carry& carry, const at::Tensor& x) {
  if (block.stage == "vision") return vision_.region(block, region, exec, carry, x);
  return decoder_->region(block, region, exec, carry, x);
}

Result<Carry> Qwen3Vl::next(const Carry& previous, const at::Tensor& token_ids, Exec& exec) {
  return decoder_->next(previous, token_ids, exec);
}

}  // namespace slim::qwen3vl

SLIM_ADAPTER_PLUGIN("qwen3vl", slim::qwen3vl::Qwen3Vl, "Qwen3-VL", "qwen3_vl")
