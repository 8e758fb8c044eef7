#include <ATen/ATen.h>

#include "common/input/multimodal_processor.hpp"
#include "common/models/multimodal_adapter.hpp"
#include "common/models/packed_experts.hpp"
#include "slim/plugin.hpp"
#include "vision.hpp"

namespace slim::qwen3vl {

/// Qwen3-VL: a vision tower whose merged patches take the place of image tokens, DeepStack features added
/// after the first language layers (arXiv:2406.04334), and a Qwen3 decoder with interleaved M-RoPE, dense or
/// with mixtures of experts.
class Qwen3Vl final : public model::MultimodalAdapter {
 public:
  Result<ModelPlan> plan(std::string_view config_json,
                         const std::map<std::string, TensorSpec>& tensors) override;
  Result<std::unique_ptr<Processor>> processor(const std::string& folder) const override;
  Status forward(const BlockPlan&, Exec&, Carry&) override;

 private:
  int32_t first_language_block_ = 0;
};

namespace {

model::DecoderDefaults defaults_of(bool mixture) {
  model::DecoderDefaults defaults;
  defaults.theta = 500000;
  if (mixture) {
    defaults.hidden = 2048, defaults.intermediate = 5632, defaults.layers = 24, defaults.heads = 16;
  } else {
    defaults.head_dim = 128;
  }
  return defaults;
}

model::DecoderConfig read_text(const model::JsonConfig& config, bool mixture) {
  const auto text = config.child("text_config");
  auto result = model::read_decoder(text, defaults_of(mixture));
  result.head_norm = model::DecoderConfig::HeadNorm::kBeforeRotary;
  result.tied = config.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", false));
  if (result.rope.sections.empty()) result.rope.sections = {24, 20, 20};
  if (result.rope.sections.size() != 3) text.fail("rope_scaling.mrope_section", "has to have 3 entries");
  result.rope.interleaved = true;
  return result;
}

model::MoeConfig read_experts(const model::JsonConfig& text, int64_t layers) {
  model::MoeLayer defaults;
  defaults.experts = 60, defaults.top_k = 4, defaults.intermediate = 1408;
  return model::read_moe(text, layers, /*default_normalize=*/true, defaults);
}

model::MultimodalTokens read_tokens(const model::JsonConfig& config, const VisionConfig& vision) {
  model::MultimodalTokens result;
  result.image_token = config.integer("image_token_id", 151655, 0);
  result.video_token = config.integer("video_token_id", 151656, 0);
  result.merge = vision.merge;
  result.patch_features = vision.patch.features();
  result.split_frames = true;
  return result;
}

}  // namespace

Result<ModelPlan> Qwen3Vl::plan(std::string_view config_json,
                                const std::map<std::string, TensorSpec>& tensors) {
  SLIM_ASSIGN(const auto config, model::JsonConfig::parse(config_json, "config.json"));
  const auto family = config.text("model_type", "qwen3_vl");
  const bool mixture = family == "qwen3_vl_moe";
  auto vision = read_vision(config.child("vision_config"));
  auto text = read_text(config, mixture);
  vision.prefix = model::stored_prefix(tensors, {"model.visual.", "visual."}, "patch_embed.proj.weight");
  model::find_names(tensors, {"model.language_model.", "language_model.model.", "language_model.", "model."},
                    text);
  const auto experts = mixture ? read_experts(config.child("text_config"), text.layers) : model::MoeConfig{};
  if (config.status().ok() && vision.out_hidden != text.hidden) {
    config.fail("vision_config.out_hidden_size", "is " + std::to_string(vision.out_hidden) +
                                                     ", expected text_config.hidden_size " +
                                                     std::to_string(text.hidden));
  }
  tokens_ = read_tokens(config, vision);
  SLIM_TRY(config.status());

  auto tower = std::make_unique<VisionTower>(vision);
  model::PlanBuilder builder(family, tensors);
  std::vector<std::string> ignore{"re:.*visual\\..*", "re:.*lm_head"};
  if (mixture) {
    decoder_ = std::make_unique<model::PackedMoeDecoder>(text, experts);
    ignore.push_back("re:.*mlp\\.gate$");
  } else {
    decoder_ = std::make_unique<model::Decoder>(text);
  }
  builder.ignore(ignore);
  tower->plan(builder);
  first_language_block_ = static_cast<int32_t>(vision.depth + 1);
  decoder_->plan(builder);
  vision_ = std::move(tower);
  return builder.finish();
}

Result<std::unique_ptr<Processor>> Qwen3Vl::processor(const std::string& folder) const {
  model::MultimodalPrompt prompt;
  prompt.split_frames = true;
  return model::make_multimodal_processor(folder, prompt);
}

Status Qwen3Vl::forward(const BlockPlan& block, Exec& exec, Carry& carry) {
  SLIM_TRY(MultimodalAdapter::forward(block, exec, carry));
  const auto features = carry.find(deepstack_key(block.index - first_language_block_));
  if (block.stage == "language" && features != carry.end()) {
    auto& hidden = carry.at("hidden");
    hidden = hidden.index_add(0, carry.at("visual_rows").to(hidden.device()),
                              features->second.to(hidden.scalar_type()));
    carry.erase(features);
  }
  return {};
}

}  // namespace slim::qwen3vl

SLIM_ADAPTER_PLUGIN("qwen3vl", slim::qwen3vl::Qwen3Vl, "Qwen3-VL, dense and mixture of experts",
                    "qwen3_vl,qwen3_vl_moe")
