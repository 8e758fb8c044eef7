#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "common/format_checks.hpp"
#include "slim/abi.h"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::formats::checks;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Format> make_format() {
  slim_error error{};
  return std::unique_ptr<Format>(static_cast<Format*>(slim_plugin_v1.components[0].create(nullptr, &error)));
}

Scheme named(const char* name) { return *scheme_from_name(name); }

constexpr const char* kBlocks =
    R"({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})";
constexpr const char* kSingle = R"({"quant_method": "fp8", "activation_scheme": "dynamic"})";

/// A layer of ones, as a checkpoint stores it.
InMemory ones(int64_t out, int64_t in, const char* scale_suffix, const at::Tensor& scale) {
  InMemory reader;
  reader.put("layer.weight", at::ones({out, in}).to(at::kFloat8_e4m3fn));
  reader.put("layer" + std::string(scale_suffix), scale);
  return reader;
}

std::string answer(const InMemory& reader, const char* config) {
  return verdict(*make_format(), reader, config);
}

}  // namespace

TEST_CASE("fp8 format/ layers decode to what was encoded, also where blocks end beyond the matrix") {
  for (const char* scheme : {"fp8_block", "fp8_dynamic_tensor", "fp8_static"}) {
    for (const auto& shape : {std::pair(8, 16), std::pair(128, 128), std::pair(129, 300)}) {
      CAPTURE(scheme);
      CAPTURE(shape.first);
      check_round_trip(*make_format(), layer(shape.first, shape.second), named(scheme));
    }
  }
}

TEST_CASE("fp8 format/ what ModelOpt writes for FP8 is read, by config.json or by its own file") {
  const auto format = make_format();
  InMemory reader = ones(4, 8, ".weight_scale", at::full({}, 0.5));
  reader.put("layer.input_scale", at::full({}, 0.25));
  reader.put("layer.k_scale", at::full({}, 1.0));
  for (const char* config :
       {R"({"quant_algo": "FP8", "producer": {"name": "modelopt", "version": "0.31.0"}})",
        R"({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]})",
        R"({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}})"}) {
    CAPTURE(config);
    CHECK(format->recognises(config, {}));
    const auto layers = format->stored_layers(reader, config);
    REQUIRE_MESSAGE(layers.ok(), layers.status().message());
    REQUIRE(layers->size() == 2);
    CHECK(layers->back().out == 0);
    const auto solved = format->decode(layers->front(), reader);
    REQUIRE_MESSAGE(solved.ok(), solved.status().message());
    CHECK(solved->input_scale.item<float>() == 0.25f);
    CHECK(at::equal(quant::decode(std::get<Quantized>(solved->weight)), at::full({4, 8}, 0.5)));
  }
  CHECK_FALSE(format->recognises("", {}));
  CHECK_FALSE(format->recognises(R"({"quant_method": "modelopt", "quant_algo": "NVFP4"})", {}));
  CHECK_FALSE(format->recognises(R"({"quant_method": "gptq", "quant_algo": "FP8"})", {}));
}

TEST_CASE("fp8 format/ the config names blocks, activations and every layer in float") {
  const auto format = make_format();
  const auto config =
      nlohmann::json::parse(config_of(*format, {{"a.up", named("fp8_block")}}, {"lm_head", "a.router"}));
  CHECK(config["quant_method"] == "fp8");
  CHECK(config["activation_scheme"] == "dynamic");
  CHECK(config["weight_block_size"] == nlohmann::json{128, 128});
  CHECK(config["modules_to_not_convert"] == nlohmann::json{"lm_head", "a.router"});
  const auto fixed = nlohmann::json::parse(config_of(*format, {{"a.up", named("fp8_static")}}));
  CHECK(fixed["activation_scheme"] == "static");
  CHECK(!fixed.contains("weight_block_size"));
}

TEST_CASE("fp8 format/ schemes that loaders of fp8 do not have are refused before any work") {
  const auto format = make_format();
  for (const char* scheme : {"w4a16", "w8a8", "fp8_dynamic", "fp8_a16", "fp8_static_channel"})
    CHECK(format->layout(layer(8, 8), named(scheme), at::kBFloat16).status().code() == Code::kUnsupported);
  OutputModel mixed;
  mixed.schemes = {{"a", named("fp8_block")}, {"b", named("fp8_static")}};
  CHECK(format->quantization_config(mixed).status().code() == Code::kUnsupported);
}

TEST_CASE("fp8 format/ scales as others store them are read") {
  const at::Tensor grid = at::full({1, 2}, 0.5, at::kBFloat16);
  CHECK(answer(ones(8, 256, ".weight_scale_inv", grid), kBlocks) == "accepted");
  CHECK(answer(ones(8, 256, ".weight_scale_inv", grid.to(at::kFloat)), kBlocks) == "accepted");
  for (const at::Tensor& single : {at::full({}, 0.5, at::kFloat), at::full({1}, 0.5, at::kBFloat16)})
    CHECK(answer(ones(8, 256, ".weight_scale", single), kSingle) == "accepted");
  InMemory unused = ones(8, 256, ".weight_scale", at::full({}, 0.5, at::kFloat));
  unused.put("layer.input_scale", at::full({1}, 1.0, at::kFloat));
  CHECK(answer(unused, kSingle) == "accepted");
}

TEST_CASE("fp8 format/ damage is named") {
  for (const char* scheme : {"fp8_block", "fp8_static"})
    check_damage(*make_format(), layer(129, 130), named(scheme));
  const at::Tensor grid = at::full({1, 2}, 0.5, at::kBFloat16);
  const auto says = [](const InMemory& reader, const char* config, const char* word) {
    const std::string text = answer(reader, config);
    CAPTURE(text);
    CHECK(text.find(word) != std::string::npos);
  };
  says(ones(8, 300, ".weight_scale_inv", grid), kBlocks, "weight_scale_inv");
  says(ones(8, 256, ".weight_scale", at::full({1}, 0.5, at::kFloat)), kBlocks, "weight_scale_inv");
  says(ones(8, 256, ".weight_scale_inv", at::full({1, 2}, NAN, at::kFloat)), kBlocks, "weight_scale_inv");
  says(ones(8, 256, ".weight_scale_inv", grid.to(at::kInt)), kBlocks, "I32");
  InMemory broken = ones(8, 256, ".weight_scale_inv", grid);
  broken.put("layer.weight", at::full({8, 256}, 0x7f, at::kByte).view(at::kFloat8_e4m3fn));
  says(broken, kBlocks, "NaN");
  broken.put("layer.weight", at::ones({8, 256}, at::kBFloat16));
  says(broken, kBlocks, "F8_E4M3");
  for (const char* size : {"[0, 128]", "[128]", "\"x\"", "[128, -1]", "[1e99, 1]"}) {
    const std::string config = R"({"quant_method": "fp8", "weight_block_size": )" + std::string(size) + "}";
    says(ones(8, 256, ".weight_scale_inv", grid), config.c_str(), "weight_block_size");
  }
}
