#include <doctest/doctest.h>

#include "common/models/adapter_checks.hpp"

using namespace slim;
using namespace slim::model;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::string config_of(const std::string& type, const std::string& more = "") {
  return R"({"model_type": ")" + type +
         R"(", "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64)" +
         more + "}";
}
constexpr char kExperts[] =
    R"(, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0])";

}  // namespace

TEST_CASE(
    "qwen/ every family names every tensor exactly once and keeps its function under scales and batches") {
  const std::string configs[] = {
      config_of("qwen2", R"(, "tie_word_embeddings": true)"),
      config_of("qwen3", R"(, "head_dim": 12, "attention_bias": true)"),
      config_of("llama", R"(, "mlp_bias": true, "rope_scaling": {"rope_type": "linear", "factor": 2.0})"),
      config_of("qwen3_moe", kExperts)};
  for (const auto& config : configs) {
    PluginAdapter plugin(slim_plugin_v1);
    const auto model = random_model(plugin.adapter, config);
    check_plan_is_consistent(model);
    check_function_is_kept(model, text_samples());
  }
}

TEST_CASE("qwen/ the families differ in biases, norms of heads and experts") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto has = [&](const std::string& config, const std::string& name) {
    return random_model(plugin.adapter, config).specs.count("model.layers.1." + name) == 1;
  };
  CHECK(has(config_of("qwen2"), "self_attn.q_proj.bias"));
  CHECK(!has(config_of("qwen2"), "self_attn.o_proj.bias"));
  CHECK(!has(config_of("qwen2"), "self_attn.q_norm.weight"));
  CHECK(has(config_of("qwen3"), "self_attn.q_norm.weight"));
  CHECK(!has(config_of("llama"), "self_attn.q_proj.bias"));
  CHECK(has(config_of("qwen3_moe", kExperts), "mlp.experts.3.down_proj.weight"));
  const std::string renamed = R"(, "num_local_experts": 6)";
  CHECK(has(config_of("qwen3_moe", kExperts + renamed), "mlp.experts.5.down_proj.weight"));
}

TEST_CASE("qwen/ layers that slide without a window, or of an unknown type, are refused by the key") {
  PluginAdapter plugin(slim_plugin_v1);
  for (
      const char* keys :
      {R"(, "layer_types": ["sliding_attention", "full_attention"])",
       R"(, "layer_types": ["full_attention"])", R"(, "layer_types": ["full_attention", "linear_attention"])",
       R"(, "layer_types": "full_attention")",
       R"(, "layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": true, "sliding_window": null)"})
    check_errors_name_the_key(plugin.adapter, {{config_of("qwen2", keys), "layer_types"}});
}

TEST_CASE("qwen/ a sample without tokens is refused by name") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of("qwen2"));
  TensorExec exec(model.tensors);
  const Sample empty = text_sample({});
  const auto carry = plugin.adapter->begin(std::span(&empty, 1), exec);
  REQUIRE(!carry.ok());
  CHECK(carry.status().message() == "calib.jsonl:1: has no tokens");
}
