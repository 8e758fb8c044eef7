#include <doctest/doctest.h>

#include "common/models/adapter_checks.hpp"

using namespace slim;
using namespace slim::model;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::string config_of(const std::string& type, const std::string& more = "") {
  return R"({"model_type": ")" + type +
         R"(", "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64, "max_position_embeddings": 64,
    "rope_theta": 10000, "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0})" +
         more + "}";
}
std::string mixture_of(const std::string& more = "") {
  return config_of("hunyuan_v1_moe",
                   R"(, "num_experts": 5, "moe_topk": [2, 3], "moe_intermediate_size": [20, 16],
    "num_shared_expert": 2, "tie_word_embeddings": true)" +
                       more);
}

}  // namespace

TEST_CASE("hunyuan/ dense models and mixtures name every tensor exactly once") {
  for (const auto& config :
       {config_of("hunyuan_v1_dense"), mixture_of(), mixture_of(R"(, "use_mixed_mlp_moe": false)"),
        config_of("hunyuan", R"(, "num_experts": 1)"), config_of("hunyuan", R"(, "num_experts": 3)")}) {
    PluginAdapter plugin(slim_plugin_v1);
    check_plan_is_consistent(random_model(plugin.adapter, config));
  }
}

TEST_CASE("hunyuan/ scale edges, batches, regions and generation keep the function") {
  for (const auto& config : {config_of("hunyuan_v1_dense", R"(, "attention_bias": true)"), mixture_of()}) {
    PluginAdapter plugin(slim_plugin_v1);
    const auto model = random_model(plugin.adapter, config);
    check_function_is_kept(model, text_samples());
  }
}

TEST_CASE("hunyuan/ experts have ports of their own below the ports of the layer") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, mixture_of());
  const auto& block = model.plan.blocks[1];
  REQUIRE(block.moe.has_value());
  CHECK(block.moe->top_k == 3);
  REQUIRE(block.moe->experts.size() == 5);
  const auto& router = block.layers[block.moe->router];
  CHECK(router.name == "model.layers.1.mlp.gate.wg");
  CHECK(router.role == Role::kRouter);
  const auto port_of = [&](LayerId id) -> const Port& { return block.ports[block.layers[id].input]; };
  for (const auto& expert : block.moe->experts) {
    REQUIRE(expert.size() == 3);
    CHECK(port_of(expert[0]).id == port_of(expert[1]).id);
    CHECK(port_of(expert[0]).parent == router.input);
    const Port& pool = block.ports[port_of(expert[2]).parent];
    CHECK(pool.pooled);
    CHECK(pool.features == 16);
  }
  CHECK(block.fused.size() == 2 + 5);  // qkv, the shared expert, each expert
  const auto& edge = block.edges.back();
  CHECK(edge.consumers.size() == 1 + 2 * (1 + 5));
  CHECK(edge.region == 1);
  CHECK(block.edges.size() == 2 + 1 + 5 + 1);
}

TEST_CASE("hunyuan/ a token depends on exactly top_k experts, also when all of them compute it") {
  PluginAdapter plugin(slim_plugin_v1);
  auto model = random_model(plugin.adapter, mixture_of());
  const std::vector<Sample> samples{text_sample({7})};
  TensorExec exec(model.tensors);
  const auto expected = logits(model, exec, samples);
  exec.every_expert = true;
  CHECK(distance(expected, logits(model, exec, samples)) < 1e-5);
  for (const bool every_expert : {false, true}) {
    exec.every_expert = every_expert;
    int used = 0;
    for (int expert = 0; expert < 5; ++expert) {
      auto& down =
          model.tensors.at("model.layers.1.mlp.experts." + std::to_string(expert) + ".down_proj.weight");
      const auto saved = down;
      down = down + 1;
      used += distance(expected, logits(model, exec, samples)) > 1e-3;
      down = saved;
    }
    CHECK(used == 3);
  }
}

TEST_CASE("hunyuan/ alpha changes the rotation: tokens at a distance feel it, a single token does not") {
  PluginAdapter plugin(slim_plugin_v1);
  auto model = random_model(plugin.adapter, config_of("hunyuan_v1_dense"));
  TensorExec exec(model.tensors);
  const std::vector<Sample> one{text_sample({7})}, many{text_sample({7, 8, 9, 10, 11})};
  const auto first = logits(model, exec, one), later = logits(model, exec, many);
  const auto other =
      config_of("hunyuan_v1_dense", R"(, "rope_parameters": {"rope_type": "default"}, "rope_scaling": null)");
  REQUIRE(plugin.adapter->plan(other, model.specs).ok());
  CHECK(distance(first, logits(model, exec, one)) < 1e-6);
  CHECK(distance(later, logits(model, exec, many)) > 1e-4);
}

TEST_CASE("hunyuan/ contradictions and options that slim does not have are told by key") {
  PluginAdapter plugin(slim_plugin_v1);
  check_errors_name_the_key(plugin.adapter,
                            {{mixture_of(R"(, "moe_topk": 6)"), "moe_topk"},
                             {mixture_of(R"(, "num_experts": [4, 4, 4])"), "num_experts"},
                             {mixture_of(R"(, "moe_intermediate_size": 0)"), "moe_intermediate_size"},
                             {mixture_of(R"(, "use_cla": true)"), "use_cla"},
                             {mixture_of(R"(, "norm_topk_prob": false)"), "norm_topk_prob"},
                             {mixture_of(R"(, "moe_layer_num_skipped": 1)"), "moe_layer_num_skipped"},
                             {mixture_of(R"(, "routed_scaling_factor": 2.5)"), "routed_scaling_factor"}});
}
