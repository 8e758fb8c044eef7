#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "common/format_checks.hpp"
#include "config.h"
#include "slim/abi.h"

using namespace slim;
using namespace slim::compressed_tensors;
using namespace slim::formats::checks;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Format> make_format() {
  slim_error error{};
  return std::unique_ptr<Format>(static_cast<Format*>(slim_plugin_v1.components[0].create(nullptr, &error)));
}

}  // namespace

TEST_CASE(
    "compressed-tensors/ packed layers decode to what was encoded, for every width, odd shapes and zero "
    "points") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const bool symmetric : {true, false}) {
      check_round_trip(*make_format(), layer(5, 24), weight_only(bits, 8, symmetric));
      check_round_trip(*make_format(), layer(37, 19), weight_only(bits, 0, symmetric));
    }
  }
  check_round_trip(*make_format(), layer(1, 1), weight_only(4, 0, false));
}

TEST_CASE("compressed-tensors/ named schemes decode to what was encoded") {
  for (const char* name : {"w4a16", "w4a16_asym", "w8a16", "w3a16", "w8a8", "w8a8_static", "fp8_static",
                           "fp8_dynamic", "fp8_block", "fp8_a16"}) {
    CAPTURE(name);
    const auto scheme = scheme_from_name(name);
    REQUIRE(scheme.ok());
    check_round_trip(*make_format(), layer(130, 256), *scheme);
  }
}

TEST_CASE("compressed-tensors/ a scheme read back has the name that slim knows it by") {
  const auto format = make_format();
  const Scheme scheme = *scheme_from_name("w4a16_asym", 32);
  const auto layers = format->stored_layers(stored(*format, layer(8, 64), scheme),
                                            config_of(*format, {{layer(8, 64).name, scheme}}));
  REQUIRE(layers.ok());
  CHECK(layers->front().scheme.name == "w4a16_asym");
}

TEST_CASE("compressed-tensors/ one scheme targets every linear, several are told apart by patterns") {
  const auto format = make_format();
  const Scheme four = *scheme_from_name("w4a16"), eight = *scheme_from_name("fp8_dynamic");
  const auto one =
      nlohmann::json::parse(config_of(*format, {{"model.layers.0.mlp.up_proj", four}}, {}, {"lm_head"}));
  CHECK((one["format"] == "pack-quantized"));
  CHECK((one["quantization_status"] == "compressed"));
  CHECK((one["config_groups"]["group_0"]["targets"] == nlohmann::json{"Linear"}));
  CHECK((one["ignore"] == nlohmann::json{"lm_head"}));

  std::map<std::string, Scheme> schemes;
  for (int i = 0; i < 12; ++i) {
    const std::string block = "model.layers." + std::to_string(i);
    schemes[block + ".mlp.up_proj"] = four;
    schemes[block + ".mlp.down_proj"] = i == 1 ? eight : four;
    schemes[block + ".self_attn.q_proj"] = eight;
  }
  const std::string text = config_of(*format, schemes);
  CHECK((nlohmann::json::parse(text)["format"] == "mixed-precision"));
  const auto config = Config::parse(text);
  REQUIRE(config.ok());
  for (const auto& [name, scheme] : schemes) {
    REQUIRE(config->find(name));
    CHECK((config->find(name)->weight == scheme.weight));
    CHECK((config->find("model.language_" + name)->weight == scheme.weight));
  }
}

TEST_CASE("compressed-tensors/ exact names beat patterns, patterns beat classes, ignored modules have none") {
  const auto config = Config::parse(R"({"ignore":["re:.*visual.*","head"],"config_groups":{
    "a":{"targets":["Linear"],"weights":{"num_bits":8}},
    "b":{"targets":["re:.*down_proj$"],"weights":{"num_bits":4}},
    "c":{"targets":["x.down_proj"],"weights":{"num_bits":3}}}})");
  REQUIRE(config.ok());
  CHECK(config->find("x.up_proj")->weight->bits == 8);
  CHECK(config->find("y.down_proj")->weight->bits == 4);
  CHECK(config->find("x.down_proj")->weight->bits == 3);
  CHECK(config->find("head") == nullptr);
  CHECK(config->find("model.visual.down_proj") == nullptr);
}

TEST_CASE("compressed-tensors/ damaged checkpoints are refused with the tensor's name") {
  const auto format = make_format();
  const Layer up = layer(6, 32);
  const Scheme scheme = weight_only(4, 8, false);
  const std::string config = config_of(*format, {{up.name, scheme}});
  check_damage(*format, up, scheme);
  const auto put = [&](const std::string& suffix, const at::Tensor& value) {
    InMemory reader = stored(*format, up, scheme);
    reader.put(up.name + suffix, value);
    return verdict(*format, reader, config);
  };
  CHECK(put(".weight_shape", at::tensor({6, 40}, at::kLong)).find("weight_packed") != std::string::npos);
  CHECK(put(".weight_shape", at::tensor({-6, 32}, at::kLong)).find("impossible") != std::string::npos);
  CHECK(put(".weight_scale", at::full({6, 4}, NAN, at::kBFloat16)).find("NaN") != std::string::npos);
  CHECK(put(".weight", at::ones({6, 32})).find(".weight") != std::string::npos);
  CHECK(put(".input_scale", at::ones({1})).find(".input_scale") != std::string::npos);
}

TEST_CASE("compressed-tensors/ a broken quantization_config is refused") {
  for (const char* text :
       {"", "[]", "{}", R"({"config_groups":[]})", R"({"config_groups":{"a":3}})",
        R"({"config_groups":{"a":{"targets":3}}})", R"({"config_groups":{"a":{"targets":["re:("]}}})",
        R"({"config_groups":{"a":{"weights":{"num_bits":"4"}}}})",
        R"({"config_groups":{"a":{"weights":{"num_bits":77}}}})",
        R"({"config_groups":{"a":{"weights":{"num_bits":4,"strategy":"group"}}}})",
        R"({"config_groups":{"a":{"weights":{"num_bits":4,"group_size":"x"}}}})",
        R"({"config_groups":{"a":{"weights":{"num_bits":8,"strategy":"block"}}}})"}) {
    CAPTURE(text);
    CHECK(!Config::parse(text).ok());
  }
}

TEST_CASE(
    "compressed-tensors/ schemes and shapes that it cannot hold are refused before any weight is read") {
  const auto format = make_format();
  CHECK(format->layout(layer(8, 100), *scheme_from_name("w4a16"), at::kBFloat16).status().code() ==
        Code::kUnsupported);
  Scheme only_input = *scheme_from_name("w8a8");
  only_input.weight.reset();
  CHECK(format->layout(layer(8, 128), only_input, at::kBFloat16).status().code() == Code::kUnsupported);
  CHECK(format->layout(layer(8, 128), *scheme_from_name("w4a16"), at::kBFloat16).ok());
}

TEST_CASE("compressed-tensors/ pruned layers keep their dtype and name, and no configuration tells of them") {
  const auto format = make_format();
  const Layer up = layer(6, 32);
  const Scheme pruned = *scheme_from_name("2:4");
  Solved solved;
  solved.weight = Dense{at::randn({6, 32})};
  const auto tensors = format->encode(up, pruned, solved, at::kBFloat16);
  REQUIRE(tensors.ok());
  REQUIRE(tensors->size() == 1);
  CHECK(same(tensors->at(up.name + ".weight"), std::get<Dense>(solved.weight).weight.to(at::kBFloat16)));
  CHECK(config_of(*format, {{up.name, pruned}}).empty());
  solved.weight = Dense{at::full({6, 32}, NAN)};
  CHECK(format->encode(up, pruned, solved, at::kBFloat16).status().message().find(up.name) !=
        std::string::npos);
}

TEST_CASE("compressed-tensors/ layers that are only pruned are ignored beside quantized ones") {
  const auto format = make_format();
  std::map<std::string, Scheme> schemes;
  for (int i = 0; i < 11; ++i) {
    schemes["model.layers." + std::to_string(i) + ".mlp.up_proj"] = *scheme_from_name("2:4");
    schemes["model.layers." + std::to_string(i) + ".mlp.down_proj"] = *scheme_from_name("w4a16");
  }
  const auto config = Config::parse(config_of(*format, schemes));
  REQUIRE(config.ok());
  for (const auto& [name, scheme] : schemes)
    CHECK((config->find(name) != nullptr) == scheme.weight.has_value());
}

TEST_CASE("compressed-tensors/ a pruned weight that is quantized too is stored as any other of its bits") {
  Scheme scheme = *scheme_from_name("w4a16", 32);
  const Layer up = layer(8, 64);
  const auto plain = make_format()->layout(up, scheme, at::kBFloat16);
  scheme.sparsity = Sparsity{2, 4};
  const auto pruned = make_format()->layout(up, scheme, at::kBFloat16);
  REQUIRE(pruned.ok());
  REQUIRE(pruned->size() == plain->size());
  for (size_t i = 0; i < plain->size(); ++i) CHECK((*pruned)[i].name == (*plain)[i].name);
}

TEST_CASE(
    "compressed-tensors/ scales of an FP8 cache stand beside the attention's layers, in the model's dtype") {
  const auto format = make_format();
  CacheSite site;
  site.name = "model.layers.3.self_attn";
  const auto layout = format->cache_layout(site, at::kBFloat16);
  REQUIRE(layout.ok());
  const at::Tensor key = at::full({1}, 0.25), value = at::full({1}, 0.5);
  const auto tensors = format->encode_cache(site, key, value, at::kBFloat16);
  REQUIRE(tensors.ok());
  REQUIRE(layout->size() == tensors->size());
  for (const TensorSpec& spec : *layout) {
    CHECK((tensors->at(spec.name).scalar_type() == *to_scalar_type(spec.dtype)));
    CHECK((tensors->at(spec.name).sizes() == at::IntArrayRef(spec.shape)));
  }
  CHECK(tensors->at("model.layers.3.self_attn.k_scale").item<float>() == 0.25f);
  CHECK(tensors->at("model.layers.3.self_attn.v_scale").item<float>() == 0.5f);
  for (const double bad : {0.0, -1.0, static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
    CHECK(!format->encode_cache(site, at::full({1}, bad), value, at::kBFloat16).ok());
  }
  const Layer up = layer(8, 64);
  InMemory reader = stored(*format, up, *scheme_from_name("w4a16", 32));
  for (const auto& [name, scale] : *tensors) reader.put(name, scale);
  const std::string quantization = config_of(*format, {{up.name, *scheme_from_name("w4a16", 32)}});
  CHECK(format->stored_layers(reader, quantization)->size() == 2);
  reader.erase("model.layers.3.self_attn.v_scale");
  CHECK(format->stored_layers(reader, quantization).status().message().find("v_scale") != std::string::npos);
  OutputModel model;
  model.kv_cache = true;
  const auto config = format->quantization_config(model);
  REQUIRE(config.ok());
  const auto cache = nlohmann::json::parse(*config)["kv_cache_scheme"];
  CHECK((cache["num_bits"] == 8 && cache["type"] == "float" && cache["strategy"] == "tensor" &&
         cache["dynamic"] == false));
}

TEST_CASE("compressed-tensors/ results that do not fit their scheme are refused") {
  const auto format = make_format();
  const Layer up = layer(6, 32);
  const Scheme scheme = weight_only(4, 8, true);
  const auto refused = [&](auto&& change) {
    Solved solved = solve(up, scheme, at::kBFloat16);
    change(std::get<Quantized>(solved.weight));
    return !format->encode(up, scheme, solved, at::kBFloat16).ok();
  };
  CHECK(!refused([](Quantized&) {}));
  CHECK(refused([](Quantized& q) { q.codes = q.codes.clone().fill_(8); }));
  CHECK(refused([](Quantized& q) { q.scale = at::zeros_like(q.scale); }));
  CHECK(refused([](Quantized& q) { q.scale = at::full_like(q.scale, INFINITY); }));
  CHECK(refused([](Quantized& q) { q.zero = at::zeros_like(q.scale, at::kChar); }));
  CHECK(refused([](Quantized& q) { q.group_index = at::arange(32, at::kInt).remainder(4).to(at::kInt); }));
  CHECK(
      !refused([](Quantized& q) { q.group_index = at::arange(32, at::kInt).div(8, "floor").to(at::kInt); }));
}

TEST_CASE("compressed-tensors/ it recognises its own configuration only") {
  const auto format = make_format();
  CHECK(format->recognises(R"({"quant_method":"compressed-tensors"})", {}));
  CHECK(!format->recognises(R"({"quant_method":"awq"})", {}));
  CHECK(!format->recognises("", {}));
  CHECK(!format->recognises("{broken", {}));
}
