#include "common/models/adapter_checks.hpp"

#include <doctest/doctest.h>

using namespace slim;
using namespace slim::model;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

/// A tiny model: `text` and `vision` are further keys of those parts, `top` of the whole.
std::string config_of(const std::string& text = "", const std::string& vision = "",
                      const std::string& top = "") {
  return R"({"model_type": "qwen3_vl", "image_token_id": 60, "video_token_id": 61)" + top + R"(,
    "text_config": {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "rope_theta": 10000,
      "rope_scaling": {"mrope_section": [4, 2, 2], "rope_type": "default"})" +
         text + R"(},
    "vision_config": {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
      "patch_size": 4, "num_position_embeddings": 25, "deepstack_visual_indexes": [2, 0])" +
         vision + "}}";
}

}  // namespace

TEST_CASE("qwen3vl/ the plan names every tensor exactly once, tied or not") {
  for (const char* top : {"", R"(, "tie_word_embeddings": true)"}) {
    PluginAdapter plugin(slim_plugin_v1);
    const auto model = random_model(plugin.adapter, config_of("", "", top));
    check_plan_is_consistent(model);
    const bool tied = *top != 0;
    CHECK((model.specs.count("lm_head.weight") == 1) == !tied);
    const auto& head = model.plan.blocks.back();
    CHECK(head.stage == "head");
    CHECK(head.layers[0].tied == tied);
    CHECK(head.layers[0].role == Role::kHead);
  }
}

TEST_CASE("qwen3vl/ a tied head that is stored a second time belongs to the plan") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of(R"(, "tie_word_embeddings": true)"),
                                  {{"lm_head.weight", {"lm_head.weight", Dtype::kF32, {64, 32}}}});
  check_plan_is_consistent(model);
  CHECK(model.plan.blocks.back().layers[0].tied);
}

TEST_CASE("qwen3vl/ language blocks have the ports, groups and edges that engines and algorithms expect") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of());
  const auto& block = model.plan.blocks[4];
  CHECK(block.name == "model.language_model.layers.0");
  std::vector<std::string> ports, edges, groups;
  for (const auto& port : block.ports) ports.push_back(port.name);
  for (const auto& edge : block.edges) edges.push_back(edge.name);
  for (const auto& group : block.fused) groups.push_back(group.name);
  CHECK(ports == std::vector<std::string>{"attention_input", "attention_output_input", "cached_keys",
                                          "cached_values", "mlp_input", "down_input"});
  CHECK(block.caches.at(0).name == "model.language_model.layers.0.self_attn");
  CHECK(groups == std::vector<std::string>{"qkv", "gate_up"});
  CHECK(edges.size() == 4);
  CHECK(block.edges[1].repeat == 2);
  CHECK(block.edges[1].head_dim == 16);
}

TEST_CASE("qwen3vl/ missing, misshapen, quantized and unknown tensors are told by name") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of());
  const std::string name = "model.language_model.layers.1.mlp.up_proj.weight";
  auto specs = model.specs;
  specs.erase(name);
  CHECK(plan_error(plugin.adapter, config_of(), specs) ==
        "tensor " + name + " is missing, config.json says it has shape [40, 32]");
  specs = model.specs;
  specs.at(name).shape = {40, 31};
  CHECK(plan_error(plugin.adapter, config_of(), specs) ==
        "tensor " + name + " has shape [40, 31], expected [40, 32] from config.json");
  specs = model.specs;
  specs.at(name).dtype = Dtype::kF8E4M3;
  CHECK(plan_error(plugin.adapter, config_of(), specs).find("F8_E4M3") != std::string::npos);
  specs = model.specs;
  const std::string inside = "model.language_model.layers.1.extra";
  specs[inside] = {inside, Dtype::kF32, {3}};
  CHECK(
      plan_error(plugin.adapter, config_of(), specs).find("tensor " + inside + " F32 [3] does not belong") ==
      0);
}

TEST_CASE("qwen3vl/ tensors outside of its blocks are copied beside the model, rotary tables are left out") {
  PluginAdapter plugin(slim_plugin_v1);
  auto specs = random_model(plugin.adapter, config_of()).specs;
  for (const char* name : {"extra", "model.language_model.layers.0.self_attn.rotary_emb.inv_freq"})
    specs[name] = {name, Dtype::kF32, {3}};
  const auto plan = plugin.adapter->plan(config_of(), specs);
  REQUIRE_MESSAGE(plan.ok(), plan.status().message());
  CHECK(plan->beside == std::vector<std::string>{"extra"});
  REQUIRE(plan->left_out.size() == 1);
  CHECK(plan->left_out[0].tensor == "model.language_model.layers.0.self_attn.rotary_emb.inv_freq");
}

TEST_CASE("qwen3vl/ contradictions in config.json are told by key") {
  PluginAdapter plugin(slim_plugin_v1);
  check_errors_name_the_key(
      plugin.adapter, {{config_of(R"(, "num_key_value_heads": 3)"), "num_key_value_heads"},
                       {config_of(R"(, "head_dim": 7)"), "head_dim"},
                       {config_of(R"(, "hidden_act": "swoosh")"), "hidden_act"},
                       {config_of(R"(, "rope_scaling": {"rope_type": "spiral"})"), "rope_type"},
                       {config_of("", R"(, "deepstack_visual_indexes": [0, 3])"), "deepstack_visual_indexes"},
                       {config_of("", R"(, "out_hidden_size": 33)"), "out_hidden_size"},
                       {config_of("", R"(, "num_heads": 5)"), "vision_config.hidden_size"},
                       {config_of("", "", R"(, "image_token_id": "x")"), "image_token_id"},
                       {"[]", "no JSON object"}});
}

TEST_CASE("qwen3vl/ scale edges, batches, regions and generation keep the function") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of(R"(, "attention_bias": true)"));
  check_function_is_kept(model, image_samples());
}

TEST_CASE("qwen3vl/ images change the logits of tokens after them, through merged and deepstack features") {
  PluginAdapter plugin(slim_plugin_v1);
  auto model = random_model(plugin.adapter, config_of());
  std::vector<Sample> samples{image_sample({{2, 2}}, 1)};
  TensorExec exec(model.tensors);
  const auto before = logits(model, exec, samples);
  samples[0].tensors["pixel_values"] = samples[0].tensors["pixel_values"].neg();
  const auto after = logits(model, exec, samples);
  CHECK(distance(before.slice(0, 0, 3), after.slice(0, 0, 3)) < 1e-6);
  CHECK(distance(before.slice(0, -1), after.slice(0, -1)) > 1e-3);
}

TEST_CASE(
    "qwen3vl/ deepstack features go to the language layers in the order of the vision blocks, at image "
    "tokens only") {
  PluginAdapter plugin(slim_plugin_v1);
  auto model = random_model(plugin.adapter, config_of());  // "deepstack_visual_indexes": [2, 0]
  const std::vector<Sample> samples{image_sample({{2, 2}}, 1)};
  TensorExec exec(model.tensors);
  const auto before = logits(model, exec, samples);
  const auto shift = [&](const char* merger) {
    auto& bias =
        model.tensors.at(std::string("model.visual.deepstack_merger_list.") + merger + ".linear_fc2.bias");
    const auto saved = bias;
    bias = bias + 1;
    const auto after = logits(model, exec, samples);
    bias = saved;
    return after;
  };
  const auto first = shift("1"), second = shift("0");
  CHECK(distance(before.slice(0, -1), first.slice(0, -1)) >
        1e-3);  // block 0 feeds layer 0: the next layer carries it on
  CHECK(distance(before.slice(0, -1), second.slice(0, -1)) ==
        0);  // block 2 feeds the last layer: nobody reads it any more
  CHECK(distance(before.slice(0, 3, 7), second.slice(0, 3, 7)) > 1e-3);
  CHECK(distance(before.slice(0, 0, 3), first.slice(0, 0, 3)) == 0);
}

TEST_CASE("qwen3vl/ a batch without images passes the vision stage with no rows") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of());
  TensorExec exec(model.tensors);
  exec.block = &model.plan.blocks[0];
  const std::vector<Sample> samples{image_sample({}, 1)};
  const auto carry = plugin.adapter->begin(samples, exec);
  REQUIRE(carry.ok());
  CHECK(carry->at("hidden").sizes() == at::IntArrayRef{0, 16});
  CHECK(logits(model, exec, samples).sizes() == at::IntArrayRef{3, 64});
}

TEST_CASE("qwen3vl/ image tokens that do not match the patches name the sample and both counts") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of());
  TensorExec exec(model.tensors);
  const auto error = [&](const Sample& sample) {
    const auto carry = plugin.adapter->begin(std::span(&sample, 1), exec);
    return carry.ok() ? std::string() : carry.status().message();
  };
  auto sample = image_sample({{2, 3}}, 7);
  auto& ids = sample.tensors.at("input_ids");
  ids = ids.slice(0, 0, -2);
  CHECK(error(sample) == "calib.jsonl:7: has 5 image tokens, but its images give 6 features");
  sample = image_sample({{1, 2}}, 8);
  sample.tensors["input_ids"] = at::tensor(std::vector<int64_t>{1, kImage, 2, kImage}, at::kLong);
  CHECK(error(sample) == "calib.jsonl:8: has a run of 1 image tokens, expected 2");
  sample = image_sample({}, 9);
  sample.tensors["input_ids"] = at::tensor(std::vector<int64_t>{1, kVideo}, at::kLong);
  CHECK(error(sample) == "calib.jsonl:9: has 1 video tokens, but its videos give 0 features");
  sample = image_sample({{1, 2}}, 10);
  sample.tensors["pixel_values"] = at::randn({7, 96});
  CHECK(error(sample).find("calib.jsonl:10: pixel_values has shape [7, 96], expected [8, 96]") == 0);
  sample.tensors["input_ids"] = at::empty({0}, at::kLong);
  CHECK(error(sample) == "calib.jsonl:10: has no tokens");
}

namespace {

enum class Layout : uint8_t { kInOut, kOutIn };

std::string mixture_of(const std::string& text = "") {
  auto config =
      config_of(R"(, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24)" + text);
  return config.replace(config.find("qwen3_vl"), 8, "qwen3_vl_moe");
}

/// Specs of the packed tensors of `layers`; hidden size 32, 5 experts.
std::map<std::string, TensorSpec> packed_specs(Layout layout, int64_t width, std::vector<int64_t> layers) {
  std::map<std::string, TensorSpec> specs;
  const auto add = [&](const std::string& name, int64_t out, int64_t in) {
    const bool in_out = layout == Layout::kInOut;
    specs[name] = {name, Dtype::kF32, {5, in_out ? in : out, in_out ? out : in}};
  };
  for (const int64_t layer : layers) {
    const std::string name = "model.language_model.layers." + std::to_string(layer) + ".mlp.experts.";
    add(name + "gate_up_proj", 2 * width, 32);
    add(name + "down_proj", 32, width);
  }
  return specs;
}

}  // namespace

TEST_CASE("qwen3vl/ packed and separate experts have the ports, groups and edges of a mixture") {
  for (const auto& specs : {packed_specs(Layout::kInOut, 24, {0, 1}),
                            packed_specs(Layout::kOutIn, 24, {0, 1}), std::map<std::string, TensorSpec>{}}) {
    PluginAdapter plugin(slim_plugin_v1);
    const auto model = random_model(plugin.adapter, mixture_of(), specs);
    check_plan_is_consistent(model);
    const auto& block = model.plan.blocks[4];
    REQUIRE(block.moe.has_value());
    CHECK(block.moe->top_k == 2);
    CHECK(block.layers[block.moe->router].name == "model.language_model.layers.0.mlp.gate");
    CHECK(block.layers[block.moe->router].role == Role::kRouter);
    REQUIRE(block.moe->experts.size() == 5);
    CHECK(block.layers[block.moe->experts[3][0]].name ==
          "model.language_model.layers.0.mlp.experts.3.gate_proj");
    CHECK(block.edges.back().consumers.size() == 1 + 2 * 5);
    CHECK(block.fused.size() == 1 + 5);
    CHECK(model.plan.default_ignore.back() == "re:.*mlp\\.gate$");
  }
}

TEST_CASE("qwen3vl/ scale edges of packed experts keep the function in both orientations") {
  for (const auto layout : {Layout::kInOut, Layout::kOutIn}) {
    PluginAdapter plugin(slim_plugin_v1);
    const auto model = random_model(plugin.adapter, mixture_of(), packed_specs(layout, 24, {0, 1}));
    const std::vector<Sample> samples{image_sample({{2, 3}}, 1), image_sample({}, 2)};
    check_edges_keep_the_function(model, samples, 1e-4);
    check_batch_equals_samples(model, samples, 1e-4);
    check_regions_recompose(model, samples, 1e-5);
  }
}

TEST_CASE("qwen3vl/ one square tensor leaves the orientation of packed experts to the other") {
  for (const int64_t width : {16, 32}) {  // gate_up is [5, 32, 32], then down
    for (const auto layout : {Layout::kInOut, Layout::kOutIn}) {
      PluginAdapter plugin(slim_plugin_v1);
      const auto config = mixture_of(R"(, "moe_intermediate_size": )" + std::to_string(width));
      const auto model = random_model(plugin.adapter, config, packed_specs(layout, width, {0, 1}));
      const auto& block = model.plan.blocks[4];
      const auto& expert = block.moe->experts[4];
      for (const LayerId id : expert) {
        CHECK(block.layers[id].weight.transposed == (layout == Layout::kInOut));
        CHECK(block.layers[id].weight.index == 4);
      }
      CHECK(block.layers[expert[1]].weight.row_begin == width);
    }
  }
}

TEST_CASE("qwen3vl/ layers without experts are dense") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto listed = random_model(plugin.adapter, mixture_of(R"(, "mlp_only_layers": [0])"),
                                   packed_specs(Layout::kInOut, 24, {1}));
  CHECK_FALSE(listed.plan.blocks[4].moe.has_value());
  CHECK(listed.plan.blocks[5].moe.has_value());
  const auto stepped = random_model(plugin.adapter, mixture_of(R"(, "decoder_sparse_step": 2)"),
                                    packed_specs(Layout::kInOut, 24, {1}));
  CHECK_FALSE(stepped.plan.blocks[4].moe.has_value());
  CHECK(stepped.plan.blocks[5].moe.has_value());
}

TEST_CASE("qwen3vl/ packed experts of another shape, or half of them, are told by name") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto good = random_model(plugin.adapter, mixture_of(), packed_specs(Layout::kInOut, 24, {0, 1}));
  const std::string name = "model.language_model.layers.1.mlp.experts.";
  auto specs = good.specs;
  specs.at(name + "gate_up_proj").shape = {5, 32, 40};
  CHECK(plan_error(plugin.adapter, mixture_of(), specs) ==
        "tensor " + name + "gate_up_proj has shape [5, 32, 40], expected [5, 32, 48] from config.json");
  specs = good.specs;
  specs.erase(name + "down_proj");
  CHECK(plan_error(plugin.adapter, mixture_of(), specs) ==
        "tensor " + name + "down_proj is missing, config.json says it has shape [5, 24, 32]");
  CHECK(plan_error(plugin.adapter, mixture_of(R"(, "num_experts_per_tok": 6)"), {})
            .find("num_experts_per_tok") != std::string::npos);
}
