#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "bit_stream.h"
#include "config.h"
#include "slim/abi.h"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::compressed_tensors;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

struct InMemory final : TensorReader {
  const std::map<std::string, TensorSpec>& tensors() const override { return specs; }
  Result<at::Tensor> read(std::string_view name) const override { return values.find(name)->second.clone(); }
  void put(const std::string& name, const at::Tensor& value) {
    specs[name] = {name, *from_scalar_type(value.scalar_type()), value.sizes().vec()};
    values[name] = value;
  }
  std::map<std::string, TensorSpec> specs;
  TensorMap values;
};

std::unique_ptr<Format> make_format() {
  slim_error error{};
  return std::unique_ptr<Format>(static_cast<Format*>(slim_plugin_v1.components[0].create(nullptr, &error)));
}

Layer layer(int64_t out, int64_t in) {
  Layer layer;
  layer.name = "model.layers.0.mlp.up_proj";
  layer.out = out;
  layer.in = in;
  return layer;
}

Scheme packed(int bits, int64_t group, bool symmetric) {
  QuantArgs args;
  args.bits = bits;
  args.granularity = group > 0 ? Granularity::kGroup : Granularity::kChannel;
  if (group > 0) args.group_size = group;
  args.symmetric = symmetric;
  return {"packed", args, {}, {}};
}

Solved solve(const Layer& layer, const Scheme& scheme) {
  at::manual_seed(static_cast<uint64_t>(layer.out * 1000 + layer.in));
  const at::Tensor w = at::randn({layer.out, layer.in});
  const auto params = quant::choose_params(w, *scheme.weight, at::kBFloat16);
  REQUIRE(params.ok());
  Solved solved;
  solved.weight = Quantized{*scheme.weight, quant::encode(w, *params, *scheme.weight), params->scale, params->zero, {}};
  if (scheme.input && !scheme.input->dynamic) {
    solved.input_scale = at::full({1}, 0.5, at::kBFloat16);
    if (!scheme.input->symmetric) solved.input_zero = at::full({1}, -3, at::kChar);
  }
  return solved;
}

InMemory stored(const Format& format, const Layer& layer, const Scheme& scheme) {
  const auto tensors = format.encode(layer, scheme, solve(layer, scheme), at::kBFloat16);
  REQUIRE(tensors.ok());
  InMemory reader;
  for (const auto& [name, value] : *tensors) reader.put(name, value);
  return reader;
}

std::string config_of(const Format& format, const std::map<std::string, Scheme>& schemes, std::vector<std::string> ignore = {}) {
  OutputModel model;
  model.schemes = schemes;
  model.ignore = std::move(ignore);
  const auto config = format.quantization_config(model);
  REQUIRE(config.ok());
  return *config;
}

bool same(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  return !a.defined() || (a.scalar_type() == b.scalar_type() && at::equal(a.to(at::kFloat), b.to(at::kFloat)));
}

void check_round_trip(const Layer& layer, const Scheme& scheme) {
  const auto format = make_format();
  const Solved solved = solve(layer, scheme);
  const InMemory reader = stored(*format, layer, scheme);
  const auto layout = format->layout(layer, scheme, at::kBFloat16);
  REQUIRE(layout.ok());
  CHECK(layout->size() == reader.specs.size());
  for (const TensorSpec& spec : *layout) {
    REQUIRE(reader.specs.contains(spec.name));
    CHECK(reader.specs.at(spec.name).dtype == spec.dtype);
    CHECK((reader.specs.at(spec.name).shape == spec.shape));
  }
  const auto layers = format->stored_layers(reader, config_of(*format, {{layer.name, scheme}}));
  REQUIRE_MESSAGE(layers.ok(), layers.status().message());
  REQUIRE(layers->size() == 1);
  CHECK((layers->front().scheme.weight == scheme.weight));
  CHECK((layers->front().scheme.input == scheme.input));
  CHECK(layers->front().out == layer.out);
  CHECK(layers->front().in == layer.in);
  const auto decoded = format->decode(layers->front(), reader);
  REQUIRE_MESSAGE(decoded.ok(), decoded.status().message());
  const auto& before = std::get<Quantized>(solved.weight);
  const auto& after = std::get<Quantized>(decoded->weight);
  CHECK(same(before.codes, after.codes));
  CHECK(same(before.scale, after.scale));
  CHECK(same(before.zero, after.zero));
  CHECK(same(solved.input_scale, decoded->input_scale));
  CHECK(same(solved.input_zero, decoded->input_zero));
}

}  // namespace

TEST_CASE("compressed-tensors/ packing is undone by unpacking, for every width and length") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int64_t count : {1, 7, 31, 32, 33, 100}) {
      const at::Tensor codes = at::randint(-(1 << (bits - 1)), 1 << (bits - 1), {3, count}, at::kChar);
      const at::Tensor words = pack_rows(codes, bits);
      CHECK(words.size(1) == (count * bits + 31) / 32);
      CHECK(at::equal(unpack_rows(words, bits, count), codes));
    }
  }
}

TEST_CASE("compressed-tensors/ value k of a stream takes the bits k*b and up, offset by half the range") {
  CHECK(pack_rows(at::tensor({-8, -7, 7}, at::kChar).view({1, 3}), 4)[0][0].item<int32_t>() == 0xf10);
  // Eleven values of three bits: the last straddles two words.
  at::Tensor codes = at::full({1, 11}, -4, at::kChar);
  codes[0][10] = 3;
  const at::Tensor words = pack_rows(codes, 3);
  CHECK(static_cast<uint32_t>(words[0][0].item<int32_t>()) == 0xC0000000u);
  CHECK(words[0][1].item<int32_t>() == 1);
}

TEST_CASE("compressed-tensors/ packed layers decode to what was encoded, for every width, odd shapes and zero points") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const bool symmetric : {true, false}) {
      check_round_trip(layer(5, 24), packed(bits, 8, symmetric));
      check_round_trip(layer(37, 19), packed(bits, 0, symmetric));
    }
  }
  check_round_trip(layer(1, 1), packed(4, 0, false));
}

TEST_CASE("compressed-tensors/ named schemes decode to what was encoded") {
  for (const char* name : {"w4a16", "w4a16_asym", "w8a16", "w3a16", "w8a8", "w8a8_static", "fp8_static", "fp8_dynamic", "fp8_block", "fp8_a16"}) {
    CAPTURE(name);
    const auto scheme = scheme_from_name(name);
    REQUIRE(scheme.ok());
    check_round_trip(layer(130, 256), *scheme);
  }
}

TEST_CASE("compressed-tensors/ a scheme read back has the name that slim knows it by") {
  const auto format = make_format();
  const Scheme scheme = *scheme_from_name("w4a16_asym", 32);
  const auto layers = format->stored_layers(stored(*format, layer(8, 64), scheme), config_of(*format, {{layer(8, 64).name, scheme}}));
  REQUIRE(layers.ok());
  CHECK(layers->front().scheme.name == "w4a16_asym");
}

TEST_CASE("compressed-tensors/ one scheme targets every linear, several are told apart by patterns") {
  const auto format = make_format();
  const Scheme four = *scheme_from_name("w4a16"), eight = *scheme_from_name("fp8_dynamic");
  const auto one = nlohmann::json::parse(config_of(*format, {{"model.layers.0.mlp.up_proj", four}}, {"lm_head"}));
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
  const Scheme scheme = packed(4, 8, false);
  const std::string config = config_of(*format, {{up.name, scheme}});
  const auto message = [&](auto&& damage) {
    InMemory reader = stored(*format, up, scheme);
    damage(reader);
    const auto layers = format->stored_layers(reader, config);
    if (!layers.ok()) return layers.status().message();
    const auto solved = format->decode(layers->front(), reader);
    return solved.ok() ? std::string("accepted") : solved.status().message();
  };
  const auto erase = [](InMemory& reader, const std::string& name) {
    REQUIRE(reader.specs.erase(name) == 1);
    reader.values.erase(name);
  };
  CHECK(message([](InMemory&) {}) == "accepted");
  for (const auto& [name, spec] : stored(*format, up, scheme).specs) {
    CAPTURE(name);
    CHECK(message([&](InMemory& r) { erase(r, name); }).find(name) != std::string::npos);
    CHECK(message([&](InMemory& r) { r.put(name, r.values.at(name).unsqueeze(0)); }).find(name) != std::string::npos);
    CHECK(message([&](InMemory& r) { r.put(name, r.values.at(name).to(at::kDouble)); }).find(name) != std::string::npos);
  }
  const auto put = [&](const std::string& suffix, const at::Tensor& value) {
    return message([&](InMemory& r) { r.put(up.name + suffix, value); });
  };
  CHECK(put(".weight_shape", at::tensor({6, 40}, at::kLong)).find("weight_packed") != std::string::npos);
  CHECK(put(".weight_shape", at::tensor({-6, 32}, at::kLong)).find("impossible") != std::string::npos);
  CHECK(put(".weight_scale", at::full({6, 4}, NAN, at::kBFloat16)).find("NaN") != std::string::npos);
  CHECK(put(".weight", at::ones({6, 32})).find(".weight") != std::string::npos);
  CHECK(put(".input_scale", at::ones({1})).find(".input_scale") != std::string::npos);
}

TEST_CASE("compressed-tensors/ a broken quantization_config is refused") {
  for (const char* text : {"", "[]", "{}", R"({"config_groups":[]})", R"({"config_groups":{"a":3}})",
                           R"({"config_groups":{"a":{"targets":3}}})", R"({"config_groups":{"a":{"targets":["re:("]}}})",
                           R"({"config_groups":{"a":{"weights":{"num_bits":"4"}}}})", R"({"config_groups":{"a":{"weights":{"num_bits":77}}}})",
                           R"({"config_groups":{"a":{"weights":{"num_bits":4,"strategy":"group"}}}})",
                           R"({"config_groups":{"a":{"weights":{"num_bits":4,"group_size":"x"}}}})",
                           R"({"config_groups":{"a":{"weights":{"num_bits":8,"strategy":"block"}}}})"}) {
    CAPTURE(text);
    CHECK(!Config::parse(text).ok());
  }
}

TEST_CASE("compressed-tensors/ schemes and shapes that it cannot hold are refused before any weight is read") {
  const auto format = make_format();
  CHECK(format->layout(layer(8, 100), *scheme_from_name("w4a16"), at::kBFloat16).status().code() == Code::kUnsupported);
  CHECK(format->layout(layer(8, 128), *scheme_from_name("2:4"), at::kBFloat16).status().code() == Code::kUnsupported);
  CHECK(format->layout(layer(8, 128), *scheme_from_name("w4a16"), at::kBFloat16).ok());
}

TEST_CASE("compressed-tensors/ it recognises its own configuration only") {
  const auto format = make_format();
  CHECK(format->recognises(R"({"quant_method":"compressed-tensors"})", {}));
  CHECK(!format->recognises(R"({"quant_method":"awq"})", {}));
  CHECK(!format->recognises("", {}));
  CHECK(!format->recognises("{broken", {}));
}
