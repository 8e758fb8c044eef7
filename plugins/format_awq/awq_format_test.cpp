#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "common/format_checks.hpp"
#include "float_modules.h"
#include "slim/abi.h"

using namespace slim;
using namespace slim::awq_format;
using namespace slim::formats::checks;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Format> make_format() {
  slim_error error{};
  return std::unique_ptr<Format>(static_cast<Format*>(slim_plugin_v1.components[0].create(nullptr, &error)));
}

std::vector<std::string> entries(const std::vector<std::string>& quantized,
                                 const std::vector<std::string>& floats) {
  ModelPlan plan;
  plan.blocks.emplace_back();
  OutputModel model;
  model.plan = &plan;
  for (const std::string& name : quantized) {
    plan.blocks[0].layers.push_back(layer(8, 8, name));
    model.schemes[name] = weight_only(4, 0, false);
  }
  for (const std::string& name : floats) plan.blocks[0].layers.push_back(layer(8, 8, name));
  return float_modules(model);
}

bool contains(const std::vector<std::string>& list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

/// AutoAWQ's and vLLM's reading of an entry.
bool skipped(const std::vector<std::string>& list, const std::string& name) {
  return std::any_of(list.begin(), list.end(),
                     [&](const std::string& entry) { return name.find(entry) != std::string::npos; });
}

}  // namespace

TEST_CASE("awq format/ layers decode to what was encoded, for every shape and group size") {
  for (const auto& [out, in, group] : {std::tuple(8, 16, 8), std::tuple(40, 33, 0), std::tuple(32, 96, 32),
                                       std::tuple(8, 1, 0), std::tuple(16, 6, 1)}) {
    check_round_trip(*make_format(), layer(out, in), weight_only(4, group, false));
  }
}

TEST_CASE("awq format/ a word holds the output channels 0 2 4 6 1 3 5 7") {
  const Layer up = layer(8, 1);
  const Scheme scheme = weight_only(4, 0, false);
  Solved solved;
  const at::Tensor ramp = at::arange(-8, 0, at::kChar).view({8, 1});
  solved.weight = Quantized{*scheme.weight, ramp, at::ones({8, 1}, at::kHalf), ramp, {}};
  const InMemory reader = stored(*make_format(), up, scheme, solved);
  CHECK(reader.values.at(up.name + ".qweight").item<int32_t>() == 0x75316420);
  CHECK(reader.values.at(up.name + ".qzeros").item<int32_t>() == 0x75316420);
}

TEST_CASE("awq format/ symmetric weights are stored with zero points of eight") {
  const auto format = make_format();
  const Layer up = layer(8, 32);
  const Scheme scheme = weight_only(4, 8, true);
  const Solved solved = solve(up, scheme, at::kHalf);
  const InMemory reader = stored(*format, up, scheme, solved);
  CHECK(static_cast<uint32_t>(reader.values.at(up.name + ".qzeros")[0][0].item<int32_t>()) == 0x88888888u);
  const auto layers = format->stored_layers(reader, config_of(*format, {{up.name, scheme}}));
  REQUIRE(layers.ok());
  const auto decoded = format->decode(layers->front(), reader);
  REQUIRE(decoded.ok());
  CHECK(same(quant::decode(std::get<Quantized>(decoded->weight)),
             quant::decode(std::get<Quantized>(solved.weight))));
}

TEST_CASE("awq format/ damaged checkpoints are refused with the tensor's name") {
  const auto format = make_format();
  const Layer up = layer(16, 32);
  const Scheme scheme = weight_only(4, 8, false);
  check_damage(*format, up, scheme);
  InMemory reader = stored(*format, up, scheme);
  reader.put(up.name + ".scales", at::full({4, 16}, INFINITY, at::kHalf));
  CHECK(verdict(*format, reader, config_of(*format, {{up.name, scheme}})).find(".scales") !=
        std::string::npos);
}

TEST_CASE(
    "awq format/ schemes, shapes and layers that it cannot hold are refused before any weight is read") {
  const auto format = make_format();
  const auto code = [&](const Layer& layer, const Scheme& scheme) {
    return format->layout(layer, scheme, at::kBFloat16).status().code();
  };
  CHECK(code(layer(8, 64), weight_only(4, 32, false)) == Code::kOk);
  CHECK(code(layer(12, 64), weight_only(4, 32, false)) == Code::kUnsupported);
  CHECK(code(layer(8, 48), weight_only(4, 32, false)) == Code::kUnsupported);
  CHECK(code(layer(8, 64), weight_only(3, 32, false)) == Code::kUnsupported);
  for (const char* name : {"w8a16", "w8a8", "fp8_block", "2:4"})
    CHECK(code(layer(128, 128), *scheme_from_name(name)) == Code::kUnsupported);
  Layer head = layer(8, 64, "lm_head");
  head.role = Role::kHead;
  CHECK(code(head, weight_only(4, 32, false)) == Code::kUnsupported);
  OutputModel mixed;
  mixed.schemes = {{"a", weight_only(4, 32, true)}, {"b", weight_only(4, 64, true)}};
  CHECK(format->quantization_config(mixed).status().code() == Code::kUnsupported);
}

TEST_CASE(
    "awq format/ modules left in float are told by the shortest part of their names that no quantized one "
    "has") {
  CHECK(entries({"model.layers.0.mlp.up_proj"}, {}).empty());
  const auto vision = entries({"model.language_model.layers.0.mlp.up_proj"},
                              {"model.visual.blocks.0.mlp.up_proj", "model.visual.blocks.1.attn.qkv"});
  CHECK(contains(vision, "visual"));
  CHECK(contains(vision, ".*visual"));
  CHECK(contains(entries({"model.layers.0.mlp.up_proj"}, {"lm_head"}), "lm_head"));
  const auto router = entries({"model.layers.0.mlp.experts.0.gate_proj"}, {"model.layers.0.mlp.gate"});
  CHECK(contains(router, "mlp.gate"));
}

TEST_CASE(
    "awq format/ layers in float that are like quantized ones are told under dynamic too, for GPTQModel") {
  const auto dynamic = [](const std::vector<std::string>& floats) {
    const std::string config =
        config_of(*make_format(), {{"model.layers.0.mlp.up_proj", weight_only(4, 32, false)}}, floats);
    return nlohmann::json::parse(config).value("dynamic", nlohmann::json());
  };
  CHECK(dynamic({}).is_null());
  const nlohmann::json found = dynamic({"model.layers.0.self_attn.o_proj"});
  REQUIRE(found.size() == 1);
  CHECK(found.begin().key().find("-:") == 0);
  CHECK(found.begin().key().find("o_proj") != std::string::npos);
}

TEST_CASE("awq format/ whatever is left in float, its entries cover it and nothing that is quantized") {
  const std::vector<std::string> names = {
      "model.layers.1.mlp.up_proj",          "model.layers.11.mlp.up_proj",
      "model.layers.1.mlp.shared.gate_proj", "model.layers.1.mlp.gate",
      "model.layers.2.mlp.gate_proj",        "model.visual.blocks.1.attn.qkv",
      "model.layers.1.self_attn.q_proj",     "lm_head"};
  for (size_t split = 0; split < (size_t{1} << names.size()); ++split) {
    std::vector<std::string> quantized, floats;
    for (size_t i = 0; i < names.size(); ++i) (split >> i & 1 ? quantized : floats).push_back(names[i]);
    const auto list = entries(quantized, floats);
    for (const std::string& name : floats) CHECK(skipped(list, name));
    for (const std::string& name : quantized) CHECK(!skipped(list, name));
    const bool attention =
        std::find(quantized.begin(), quantized.end(), "model.layers.1.self_attn.q_proj") != quantized.end();
    if (attention) CHECK(!skipped(list, "model.layers.1.self_attn.qkv_proj"));
  }
}

TEST_CASE("awq format/ old and new keys of the configuration are read, other versions refused") {
  const auto format = make_format();
  const InMemory reader = stored(*format, layer(8, 32), weight_only(4, 8, false));
  const auto told = [&](const char* config) { return verdict(*format, reader, config); };
  CHECK(told(R"({"bits":4,"group_size":8,"version":"gemm","zero_point":true})") == "accepted");
  CHECK(told(R"({"w_bit":4,"q_group_size":8,"version":"GEMM"})") == "accepted");
  for (const char* text :
       {"", "[]", R"({"bits":4,"group_size":0})", R"({"bits":8,"group_size":8})",
        R"({"bits":4,"group_size":8,"version":"gemv"})", R"({"bits":4,"group_size":8,"zero_point":false})",
        R"({"bits":"4","group_size":8})"}) {
    CAPTURE(text);
    CHECK(told(text) != "accepted");
  }
  CHECK(format->recognises(R"({"quant_method":"awq"})", {}));
  CHECK(!format->recognises(R"({"quant_method":"gptq"})", {}));
  CHECK(!format->recognises("", {}));
}
