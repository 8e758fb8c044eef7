#include "common/models/packed_experts.hpp"
#include "common/models/text_adapter.hpp"
#include "slim/plugin.hpp"

namespace slim::hunyuan {
using model::DecoderConfig;
using model::JsonConfig;

/// HunYuan v1: norms of queries and keys after the rotation, a rotary base stretched by alpha, and mixtures of
/// experts with a shared one, whose router computes in fp32.
class Hunyuan final : public model::TextAdapter {
 public:
  Result<ModelPlan> plan(std::string_view config_json,
                         const std::map<std::string, TensorSpec>& tensors) override;
};

namespace {

/// Options of the family that its published models leave off.
void refuse_variants(const JsonConfig& config) {
  if (config.boolean("use_cla", false))
    config.fail("use_cla", "is true: attention shared across layers is not supported");
  if (!config.boolean("norm_topk_prob", true))
    config.fail("norm_topk_prob", "is false, which is not supported");
  if (config.integer("moe_layer_num_skipped", 0, 0) != 0) {
    config.fail("moe_layer_num_skipped", "is not 0: dense layers before the mixtures are not supported");
  }
  if (config.number("routed_scaling_factor", 1) != 1)
    config.fail("routed_scaling_factor", "is not 1, which is not supported");
}

DecoderConfig read_text(const JsonConfig& config) {
  model::DecoderDefaults defaults;
  defaults.intermediate = 11008;
  defaults.vocabulary = 290943;
  defaults.epsilon = 1e-5;
  defaults.head_dim = config.integer("attention_head_dim", 0, 0);
  auto result = model::read_decoder(config, defaults);
  if (config.boolean("use_qk_norm", true)) result.head_norm = DecoderConfig::HeadNorm::kAfterRotary;
  result.query_norm = "query_layernorm";
  result.key_norm = "key_layernorm";
  result.tied = config.boolean("tie_word_embeddings", false);
  return result;
}

/// A number for all layers, or one per layer.
std::vector<int64_t> per_layer(const JsonConfig& config, const char* key, int64_t fallback, int64_t layers) {
  auto values = config.integers(key, std::vector<int64_t>{fallback});
  if (values.size() == 1) values.resize(layers, values[0]);
  bool good = static_cast<int64_t>(values.size()) == layers;
  for (const int64_t value : values) good = good && value >= 1;
  if (good) return values;
  config.fail(key,
              "has to be a positive number, or one for each of the " + std::to_string(layers) + " layers");
  return std::vector<int64_t>(layers, 1);
}

model::MoeConfig read_experts(const JsonConfig& config, const DecoderConfig& text) {
  const auto experts = per_layer(config, "num_experts", 1, text.layers),
             top_k = per_layer(config, "moe_topk", 1, text.layers);
  const auto widths = per_layer(config, "moe_intermediate_size", text.intermediate, text.layers);
  const auto shared = per_layer(config, "num_shared_expert", 1, text.layers);
  model::MoeConfig result;
  result.router = "gate.wg";
  result.router_in_float = true;
  if (config.boolean("use_mixed_mlp_moe", true)) result.shared_expert = "shared_mlp";
  constexpr int64_t kMostExperts = 8192;
  for (int64_t i = 0; i < text.layers; ++i) {
    if (experts[i] > kMostExperts) config.fail("num_experts", "is more than " + std::to_string(kMostExperts));
    if (top_k[i] > experts[i]) config.fail("moe_topk", "is more than num_experts");
    result.layers.push_back({experts[i], top_k[i], widths[i], shared[i] * text.intermediate});
  }
  return result;
}

/// The older model_type "hunyuan" names dense models and mixtures alike.
bool is_mixture(const JsonConfig& config, const std::string& family) {
  if (family != "hunyuan") return family == "hunyuan_v1_moe";
  for (const int64_t experts : config.integers("num_experts", std::vector<int64_t>{1})) {
    if (experts > 1) return true;
  }
  return false;
}

}  // namespace

Result<ModelPlan> Hunyuan::plan(std::string_view config_json,
                                const std::map<std::string, TensorSpec>& tensors) {
  SLIM_ASSIGN(const auto config, JsonConfig::parse(config_json, "config.json"));
  const auto family = config.text("model_type", "hunyuan_v1_dense");
  auto text = read_text(config);
  model::find_names(tensors, {"model.", ""}, text);
  refuse_variants(config);
  const bool mixture = is_mixture(config, family);
  const auto experts = mixture ? read_experts(config, text) : model::MoeConfig{};
  SLIM_TRY(config.status());

  if (mixture)
    decoder_ = std::make_unique<model::PackedMoeDecoder>(text, experts);
  else
    decoder_ = std::make_unique<model::Decoder>(text);
  end_of_turn_ = "<|eos|>";
  model::PlanBuilder builder(family, tensors);
  using Names = std::vector<std::string>;
  builder.ignore(mixture ? Names{"re:.*lm_head", "re:.*mlp\\.gate\\.wg$"} : Names{"re:.*lm_head"});
  decoder_->plan(builder);
  return builder.finish();
}

}  // namespace slim::hunyuan

SLIM_ADAPTER_PLUGIN("hunyuan", slim::hunyuan::Hunyuan, "HunYuan v1, dense and mixture of experts",
                    "hunyuan_v1_dense,hunyuan_v1_moe,hunyuan")
