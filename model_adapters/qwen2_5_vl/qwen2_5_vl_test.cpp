#include <numeric>

#include "common/models/adapter_checks.hpp"

#include <doctest/doctest.h>

#include "vision.hpp"

using namespace slim;
using namespace slim::model;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

/// A tiny model with windows of 2 x 2 tokens: `text`, `vision` and `top` are further keys.
std::string config_of(const std::string& text = "", const std::string& vision = "",
                      const std::string& top = "") {
  return R"({"model_type": "qwen2_5_vl", "image_token_id": 60, "video_token_id": 61)" + top + R"(,
    "text_config": {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "vocab_size": 64, "rope_theta": 10000,
      "rope_scaling": {"mrope_section": [2, 1, 1], "type": "mrope"})" +
         text + R"(},
    "vision_config": {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
      "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1])" +
         vision + "}}";
}

std::string qwen2_config() {
  return R"({"model_type": "qwen2_vl", "image_token_id": 60, "video_token_id": 61, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "rope_scaling": {"mrope_section": [2, 1, 1], "type": "mrope"},
    "vision_config": {"depth": 2, "embed_dim": 16, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 32,
      "patch_size": 4}})";
}

/// The same checkpoint under the names that transformers has in memory.
std::string nested_name(const std::string& name) {
  if (name.starts_with("visual.")) return "model." + name;
  if (name.starts_with("model.")) return "model.language_model." + name.substr(6);
  return name;
}

}  // namespace

TEST_CASE("qwen2_5_vl/ windows hold every token once, row by row, the last ones cut off at the edges") {
  const auto grid = at::tensor(std::vector<int64_t>{1, 6, 10}, at::kLong).view({1, 3});  // 3 x 5 tokens
  const auto windows = qwen2_5_vl::make_windows(grid, 2, 2);
  CHECK(windows.order == std::vector<int64_t>{0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14});
  CHECK(windows.lengths == std::vector<int64_t>{4, 4, 2, 2, 2, 1});
}

TEST_CASE("qwen2_5_vl/ windows keep to one frame of one image") {
  for (int64_t seed = 0; seed < 20; ++seed) {
    at::manual_seed(seed);
    const auto grid =
        at::randint(1, 6, {3, 3}, at::kLong) * at::tensor(std::vector<int64_t>{1, 2, 2}, at::kLong);
    const auto windows = qwen2_5_vl::make_windows(grid, 2, 1 + seed % 4);
    auto sorted = windows.order;
    std::sort(sorted.begin(), sorted.end());
    std::vector<int64_t> all(sorted.size());
    std::iota(all.begin(), all.end(), 0);
    CHECK(sorted == all);
    int64_t place = 0, frame_end = 0;
    size_t window = 0;
    for (int64_t image = 0; image < 3; ++image) {
      for (int64_t frame = 0; frame < grid[image][0].item<int64_t>(); ++frame) {
        frame_end += (grid[image][1] * grid[image][2]).item<int64_t>() / 4;
        while (place < frame_end) place += windows.lengths.at(window++);
        CHECK(place == frame_end);
        CHECK(*std::max_element(windows.order.begin(), windows.order.begin() + place) == frame_end - 1);
      }
    }
    CHECK(window == windows.lengths.size());
  }
}

TEST_CASE("qwen2_5_vl/ the plan names every tensor exactly once, tied or not, of both families") {
  for (const auto& config : {config_of(), config_of("", "", R"(, "tie_word_embeddings": true)"),
                             config_of(R"(, "tie_word_embeddings": true)"), qwen2_config()}) {
    PluginAdapter plugin(slim_plugin_v1);
    const auto model = random_model(plugin.adapter, config);
    check_plan_is_consistent(model);
    const bool tied = config.find("tie_word") != std::string::npos;
    CHECK((model.specs.count("lm_head.weight") == 1) == !tied);
    CHECK(model.plan.blocks.back().layers[0].tied == tied);
    CHECK(model.plan.default_ignore == std::vector<std::string>{"re:.*visual\\..*", "re:.*lm_head"});
  }
}

TEST_CASE("qwen2_5_vl/ the nested layout of names gives the same model") {
  PluginAdapter plugin(slim_plugin_v1);
  auto model = random_model(plugin.adapter, config_of());
  TensorExec exec(model.tensors);
  const auto samples = image_samples();
  const auto expected = logits(model, exec, samples);
  CHECK(model.plan.blocks[4].name == "model.layers.0");
  auto nested = model;
  nested.specs.clear();
  nested.tensors.clear();
  for (const auto& [name, spec] : model.specs) {
    nested.specs[nested_name(name)] = {nested_name(name), spec.dtype, spec.shape};
    nested.tensors[nested_name(name)] = model.tensors.at(name);
  }
  const auto plan = plugin.adapter->plan(config_of(), nested.specs);
  REQUIRE_MESSAGE(plan.ok(), plan.status().message());
  nested.plan = *plan;
  check_plan_is_consistent(nested);
  CHECK(nested.plan.blocks[0].name == "model.visual.blocks.0");
  CHECK(nested.plan.blocks[4].name == "model.language_model.layers.0");
  TensorExec nested_exec(nested.tensors);
  CHECK(distance(expected, logits(nested, nested_exec, samples)) == 0);
}

TEST_CASE("qwen2_5_vl/ scale edges, batches, regions and generation keep the function") {
  for (const auto& config : {config_of(), qwen2_config()}) {
    PluginAdapter plugin(slim_plugin_v1);
    const auto model = random_model(plugin.adapter, config);
    check_function_is_kept(model, image_samples());
  }
}

TEST_CASE("qwen2_5_vl/ a patch reaches other windows only through blocks with full attention") {
  for (const bool full : {true, false}) {
    PluginAdapter plugin(slim_plugin_v1);
    const std::string blocks = full ? "[2]" : "[]";
    const auto model = random_model(plugin.adapter, config_of("", R"(, "fullatt_block_indexes": )" + blocks));
    TensorExec exec(model.tensors);
    const auto features = [&](const Sample& sample) {
      exec.block = &model.plan.blocks[0];
      auto carry = *plugin.adapter->begin(std::span(&sample, 1), exec);
      for (int i = 0; i < 4; ++i) {
        exec.block = &model.plan.blocks[i];
        REQUIRE(plugin.adapter->forward(model.plan.blocks[i], exec, carry).ok());
      }
      return carry.at("hidden");
    };
    auto sample = image_sample({{2, 4}}, 1);  // two windows of 2 x 2 tokens: columns 0 and 1, columns 2 and 3
    const auto before = features(sample);
    auto& pixels = sample.tensors.at("pixel_values");
    pixels = at::cat({pixels.slice(0, 0, 4) + 1, pixels.slice(0, 4)});  // token 0
    const auto change = (features(sample) - before).abs().amax(1);
    for (const int64_t token : {0, 1, 4, 5}) CHECK(change[token].item<double>() > 1e-4);
    for (const int64_t token : {2, 3, 6, 7}) CHECK((change[token].item<double>() > 0) == full);
  }
}

TEST_CASE("qwen2_5_vl/ frames of a video lie apart by the seconds that the sample says") {
  PluginAdapter plugin(slim_plugin_v1);
  const auto model = random_model(plugin.adapter, config_of("", R"(, "tokens_per_second": 3)"));
  TensorExec exec(model.tensors);
  exec.block = &model.plan.blocks[0];
  Sample sample;
  sample.tensors["input_ids"] = at::tensor(std::vector<int64_t>{5, kVideo, kVideo, 6}, at::kLong);
  sample.tensors["pixel_values_videos"] = at::randn({8, 96});
  sample.tensors["video_grid_thw"] = at::tensor(std::vector<int64_t>{2, 2, 2}, at::kLong).view({1, 3});
  for (const auto& [seconds, step] : {std::pair{2.0, 6}, {1.5, 3}, {0.5, 0}}) {
    sample.tensors["second_per_grid_ts"] = at::tensor(std::vector<double>{seconds}, at::kDouble);
    const auto carry = plugin.adapter->begin(std::span(&sample, 1), exec);
    REQUIRE(carry.ok());
    const auto expected = at::tensor(std::vector<int64_t>{0, 1, 1 + step, 2}, at::kLong);
    CHECK(carry->at("positions")[0].equal(expected));
  }
}

TEST_CASE("qwen2_5_vl/ contradictions in config.json are told by key") {
  PluginAdapter plugin(slim_plugin_v1);
  check_errors_name_the_key(
      plugin.adapter, {{config_of("", R"(, "window_size": 7)"), "window_size"},
                       {config_of("", R"(, "out_hidden_size": 33)"), "out_hidden_size"},
                       {config_of("", R"(, "num_heads": 5)"), "vision_config.hidden_size"},
                       {config_of("", R"(, "hidden_act": "swoosh")"), "hidden_act"},
                       {config_of("", R"(, "patch_size": [4, 5])"), "patch_size"},
                       {config_of(R"(, "use_sliding_window": true, "sliding_window": 0)"), "sliding_window"},
                       {config_of(R"(, "num_key_value_heads": 3)"), "num_key_value_heads"}});
}
