#include "common/models/packed_experts.hpp"
#include "common/models/text_adapter.hpp"
#include "slim/plugin.hpp"

namespace slim::qwen {
using model::DecoderConfig;
using model::JsonConfig;

/// Llama and its relatives: Qwen2 (biases of queries, keys and values), Qwen3 (norms of queries and keys) and
/// Qwen3-MoE.
class Qwen final : public model::TextAdapter {
 public:
  Result<ModelPlan> plan(std::string_view config_json,
                         const std::map<std::string, TensorSpec>& tensors) override;
};

namespace {

DecoderConfig read_text(const JsonConfig& config, const std::string& family) {
  model::DecoderDefaults defaults;
  if (family == "llama") defaults.intermediate = 11008, defaults.vocabulary = 32000;
  if (family == "mistral") defaults.intermediate = 14336, defaults.vocabulary = 32000, defaults.kv_heads = 8;
  if (family == "qwen3") defaults.head_dim = 128;
  auto result = model::read_decoder(config, defaults);
  if (family.starts_with("qwen2") || family == "mimo") {
    result.qkv_bias = true;
    result.output_bias = false;
  }
  if (family.starts_with("qwen3")) result.head_norm = DecoderConfig::HeadNorm::kBeforeRotary;
  if (family == "llama") result.mlp_bias = config.boolean("mlp_bias", false);
  result.tied = config.boolean("tie_word_embeddings", false);
  return result;
}

/// Qwen2-MoE adds an expert that computes every token, times a sigmoid of its own.
model::MoeConfig read_experts(const JsonConfig& config, const std::string& family, int64_t layers) {
  auto result = model::read_moe(config, layers, /*default_normalize=*/false);
  if (family != "qwen2_moe") return result;
  const int64_t width = config.integer("shared_expert_intermediate_size", 5632);
  result.shared_expert = "shared_expert";
  result.shared_gate = "shared_expert_gate";
  for (model::MoeLayer& layer : result.layers) layer.shared = width;
  return result;
}

/// As transformers reads them: a window for every layer (Mistral, Qwen3-MoE), for those from max_window_layers on (Qwen2, Qwen3), or for
/// every second one before it (Qwen2-MoE). Llama has none.
void read_windows(const JsonConfig& config, const std::string& family, DecoderConfig& text) {
  if (family == "llama") return;
  const auto all = [](int64_t) { return true; };
  if (family == "mistral") {
    const bool enabled = config.has("sliding_window") || !config.names("sliding_window");
    return model::read_windows(config, enabled, all, text);
  }
  const bool enabled = config.boolean("use_sliding_window", false) &&
                       (config.has("sliding_window") || !config.names("sliding_window"));
  const int64_t most = config.integer("max_window_layers", 28, 0);
  if (family == "qwen3_moe") return model::read_windows(config, enabled, all, text);
  if (family == "qwen2_moe")
    return model::read_windows(
        config, enabled, [&](int64_t i) { return i % 2 == 0 && i < most; }, text);
  model::read_windows(
      config, enabled, [&](int64_t i) { return i >= most; }, text);
}

}  // namespace

Result<ModelPlan> Qwen::plan(std::string_view config_json, const std::map<std::string, TensorSpec>& tensors) {
  SLIM_ASSIGN(const auto config, JsonConfig::parse(config_json, "config.json"));
  const auto family = config.text("model_type", "qwen3");
  auto text = read_text(config, family);
  model::find_names(
      tensors, {"model.", "", "model.language_model.", "language_model.model.", "language_model."}, text);
  const bool mixture = family.ends_with("_moe");
  const auto experts = mixture ? read_experts(config, family, text.layers) : model::MoeConfig{};
  read_windows(config, family, text);
  SLIM_TRY(config.status());

  std::vector<std::string> ignore{"re:.*lm_head"};
  if (mixture) {
    decoder_ = std::make_unique<model::PackedMoeDecoder>(text, experts);
    ignore.push_back("re:.*mlp\\.gate$");
    if (!experts.shared_gate.empty()) ignore.push_back("re:.*shared_expert_gate$");
  } else {
    decoder_ = std::make_unique<model::Decoder>(text);
  }
  end_of_turn_ = family == "llama" || family == "mistral" ? "</s>" : "<|im_end|>";
  model::PlanBuilder builder(family, tensors);
  builder.ignore(ignore);
  decoder_->plan(builder);
  return builder.finish();
}

}  // namespace slim::qwen

SLIM_ADAPTER_PLUGIN("qwen", slim::qwen::Qwen, "Qwen2 and Qwen3 with their mixtures, Llama, Mistral and MiMo",
                    "qwen2,qwen2_moe,qwen3,qwen3_moe,llama,mistral,mimo")
