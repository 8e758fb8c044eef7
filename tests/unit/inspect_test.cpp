#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "commands/commands.h"
#include "plugin/registry.h"
#include "unit/checkpoint_files.h"

using namespace slim;
using namespace slim::test;

namespace {

struct Model : TempFolder {
  Model(const std::string& config,
        const std::vector<std::pair<std::string, std::string>>& tensors) {  // name, entry without name
    std::string header = "{";
    for (const auto& [name, rest] : tensors)
      header += (header.size() > 1 ? ",\"" : "\"") + name + "\":" + rest;
    write_text(path() / "config.json", config);
    write_text(path() / "model.safetensors", raw_file(header + "}", data));
  }
  std::string data = std::string(64, '\0');
  nlohmann::json json() {
    PluginRegistry registry;
    const auto report = inspect(path().string(), registry);
    REQUIRE_MESSAGE(report.ok(), report.status().message());
    text = report->text;
    return nlohmann::json::parse(report->json);
  }
  std::string text;
};

std::string u8(int64_t count, int64_t begin) {
  return R"({"dtype":"U8","shape":[)" + std::to_string(count) + R"(],"data_offsets":[)" +
         std::to_string(begin) + "," + std::to_string(begin + count) + "]}";
}

}  // namespace

TEST_CASE("inspect/ tensors are counted by tower") {
  Model model(R"({"model_type":"toy"})", {{"model.visual.blocks.0.attn.qkv.weight", u8(1, 0)},
                                          {"visual.merger.ln_q.weight", u8(2, 1)},
                                          {"model.language_model.layers.0.mlp.down_proj.weight", u8(4, 3)},
                                          {"model.layers.1.input_layernorm.weight", u8(8, 7)},
                                          {"model.language_model.embed_tokens.weight", u8(16, 15)},
                                          {"lm_head.weight", u8(32, 31)},
                                          {"mystery", u8(1, 63)}});
  const auto json = model.json();
  CHECK(json["towers"]["vision"]["parameters"] == 3);
  CHECK(json["towers"]["language"]["parameters"] == 12);
  CHECK(json["towers"]["embedding"]["parameters"] == 16);
  CHECK(json["towers"]["head"]["parameters"] == 32);
  CHECK(json["towers"]["other"]["parameters"] == 1);
  CHECK(json["parameters"] == 64);
  CHECK(json["bytes"] == 64);
  CHECK(json["dtypes"] == nlohmann::json{{"U8", 64}});
  CHECK(json["tensors"] == 7);
  CHECK(json["model_type"] == "toy");
  CHECK(json["quantization"].is_null());
  CHECK(json["files"] ==
        nlohmann::json::array({{{"name", "model.safetensors"}, {"tensors", 7}, {"bytes", 64}}}));
  CHECK(model.text.find("vision") != std::string::npos);
  CHECK(model.text.ends_with("\n"));
}

TEST_CASE("inspect/ packed weights count as the float weights they stand for") {
  const std::string config =
      R"({"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",
    "config_groups":{"group_0":{"weights":{"num_bits":4,"group_size":128}}},"ignore":["lm_head","x"]}})";
  const std::string packed = R"({"dtype":"I32","shape":[2,4],"data_offsets":[0,32]})",
                    shape = R"({"dtype":"I64","shape":[2],"data_offsets":[32,48]})";
  Model model(config, {{"model.layers.0.q.weight_packed", packed},
                       {"model.layers.0.q.weight_shape", shape},
                       {"model.layers.0.q.weight_scale", u8(16, 48)}});
  std::string file = read_text_file(model / "model.safetensors");
  file[file.size() - 32] = 2;  // weight_shape = (2, 30): less than the 2 x 32 that the words could hold
  file[file.size() - 24] = 30;
  write_text(model.path() / "model.safetensors", file);
  const auto json = model.json();
  CHECK(json["parameters"] == 60);
  const nlohmann::json expected = {{"method", "compressed-tensors"},
                                   {"format", "pack-quantized"},
                                   {"bits", 4},
                                   {"group_size", 128},
                                   {"ignored", 2}};
  CHECK(json["quantization"] == expected);
  CHECK(model.text.find("compressed-tensors, pack-quantized, 4 bits, group 128, 2 ignore entries") !=
        std::string::npos);
  file[file.size() - 25] = static_cast<char>(0x80);  // a negative dimension
  write_text(model.path() / "model.safetensors", file);
  PluginRegistry registry;
  CHECK(inspect(model.path().string(), registry).status().code() == Code::kCorrupt);
}

TEST_CASE("inspect/ words without a stored shape count by the configured bits") {
  const std::string config =
      R"({"quantization_config":{"quant_method":"awq","bits":8,"group_size":-1,"version":"gemm",
          "modules_to_not_convert":null}})";
  Model model(config, {{"model.layers.0.q.qweight", R"({"dtype":"I32","shape":[2,4],"data_offsets":[0,32]})"},
                       {"model.layers.0.q.qzeros", u8(16, 32)},
                       {"model.layers.0.q.scales", u8(16, 48)}});
  CHECK(model.json()["parameters"] == 32);
  CHECK(model.text.find("awq, gemm, 8 bits, whole rows, 0 ignore entries") != std::string::npos);
}

TEST_CASE("inspect/ odd values in config.json neither crash nor reach the terminal") {
  for (const char* config : {R"({"model_type":"\u001b[31m","quantization_config":{"quant_method":"\u0007"}})",
                             R"({"model_type":7,"quantization_config":[1]})",
                             R"({"quantization_config":{"bits":"four","config_groups":{"a":[]},"ignore":3}})",
                             R"({"text_config":{"quantization_config":{"bits":0}}})"}) {
    Model model(config, {{"w.qweight", u8(64, 0)}});
    CHECK(model.json()["tensors"] == 1);
    CHECK(model.text.find('\x1b') == std::string::npos);
    CHECK(model.text.find('\7') == std::string::npos);
  }
}
