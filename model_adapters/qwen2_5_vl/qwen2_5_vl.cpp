#include "common/input/multimodal_processor.hpp"
#include "common/models/multimodal_adapter.hpp"
#include "slim/plugin.hpp"
#include "vision.hpp"

namespace slim::qwen2_5_vl {
using model::JsonConfig;

/// Qwen2.5-VL and Qwen2-VL: a vision tower (with attention inside windows in Qwen2.5-VL) whose merged patches
/// take the place of image and video tokens, and a Qwen2 decoder with M-RoPE (arXiv:2409.12191, 2502.13923).
/// Checkpoints name their tensors in either of two ways: "model.layers" and "visual", as published, or
/// "model.language_model.layers" and "model.visual".
class Qwen25Vl final : public model::MultimodalAdapter {
 public:
  Result<ModelPlan> plan(std::string_view config_json,
                         const std::map<std::string, TensorSpec>& tensors) override;
  Result<std::unique_ptr<Processor>> processor(const std::string& folder) const override;

 private:
  bool positions_in_seconds_ = false;
};

namespace {

/// The language model's keys stand in text_config, or in older files beside vision_config; some have a few of them in both places.
model::DecoderConfig read_text(const JsonConfig& config) {
  const bool nested = config.has("text_config") &&
                      (config.child("text_config").has("hidden_size") || !config.has("hidden_size"));
  const auto text = nested ? config.child("text_config") : config;
  model::DecoderDefaults defaults;
  defaults.hidden = 8192, defaults.intermediate = 29568, defaults.layers = 80, defaults.heads = 64;
  defaults.vocabulary = 152064, defaults.epsilon = 1e-5, defaults.theta = 1e6;
  defaults.kv_heads = text.has("num_attention_heads") ? 0 : 8;
  auto result = model::read_decoder(text, defaults);
  result.qkv_bias = true;
  result.output_bias = false;
  result.tied = config.boolean("tie_word_embeddings", false) || text.boolean("tie_word_embeddings", false);
  result.rope.interleaved = false;
  if (result.rope.sections.empty()) result.rope.sections = {16, 24, 24};
  const int64_t first = text.integer("max_window_layers", 80, 0);
  const bool windows = text.boolean("use_sliding_window", false) &&
                       (text.has("sliding_window") || !text.names("sliding_window"));
  model::read_windows(
      text, windows, [&](int64_t layer) { return layer >= first; }, result);
  return result;
}

model::MultimodalTokens read_tokens(const JsonConfig& config, const VisionConfig& vision) {
  model::MultimodalTokens result;
  result.image_token = config.integer("image_token_id", 151655, 0);
  result.video_token = config.integer("video_token_id", 151656, 0);
  result.merge = vision.merge;
  result.patch_features = vision.patch.features();
  result.tokens_per_second = vision.tokens_per_second;
  return result;
}

}  // namespace

Result<ModelPlan> Qwen25Vl::plan(std::string_view config_json,
                                 const std::map<std::string, TensorSpec>& tensors) {
  SLIM_ASSIGN(const auto config, JsonConfig::parse(config_json, "config.json"));
  const auto family = config.text("model_type", "qwen2_5_vl");
  auto vision = read_vision(config.child("vision_config"), family);
  auto text = read_text(config);
  if (config.status().ok() && vision.out_hidden != text.hidden) {
    config.fail(
        vision.gated ? "vision_config.out_hidden_size" : "vision_config.hidden_size",
        "is " + std::to_string(vision.out_hidden) + ", expected hidden_size " + std::to_string(text.hidden));
  }
  tokens_ = read_tokens(config, vision);
  positions_in_seconds_ = vision.gated;
  SLIM_TRY(config.status());
  vision.prefix = model::stored_prefix(tensors, {"visual.", "model.visual."}, "patch_embed.proj.weight");
  model::find_names(
      tensors, {"model.", "model.language_model.", "language_model.model.", "language_model.", ""}, text);

  auto tower = std::make_unique<VisionTower>(vision);
  decoder_ = std::make_unique<model::Decoder>(text);
  model::PlanBuilder builder(family, tensors);
  builder.ignore({"re:.*visual\\..*", "re:.*lm_head"});
  tower->plan(builder);
  decoder_->plan(builder);
  vision_ = std::move(tower);
  return builder.finish();
}

Result<std::unique_ptr<Processor>> Qwen25Vl::processor(const std::string& folder) const {
  model::MultimodalPrompt prompt;
  prompt.seconds_per_grid = positions_in_seconds_;
  return model::make_multimodal_processor(folder, prompt);
}

}  // namespace slim::qwen2_5_vl

SLIM_ADAPTER_PLUGIN("qwen2_5_vl", slim::qwen2_5_vl::Qwen25Vl, "Qwen2.5-VL and Qwen2-VL",
                    "qwen2_5_vl,qwen2_vl")
