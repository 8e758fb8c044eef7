#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "common/bit_stream.hpp"
#include "common/format_checks.hpp"
#include "common/gptq.hpp"
#include "common/gptq_config.hpp"

using namespace slim;
using namespace slim::formats;
using namespace slim::formats::checks;

TEST_CASE("gptq layout/ layers decode to what was encoded, for every width, shape, group size and version") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const auto& one_case :
         {std::tuple(32, 64, 32), std::tuple(96, 160, 0), std::tuple(64, 96, 16), std::tuple(32, 32, 1)}) {
      const auto& out = std::get<0>(one_case);
      const auto& in = std::get<1>(one_case);
      const auto& group = std::get<2>(one_case);
      CAPTURE(bits);
      CAPTURE(group);
      for (const int version : {1, 2})
        check_round_trip(GptqFormat(version), layer(out, in), weight_only(bits, group, true));
      check_round_trip(GptqFormat(2), layer(out, in), weight_only(bits, group, false));
    }
  }
  check_round_trip(GptqFormat(1), layer(4, 4), weight_only(8, 0, true));
}

TEST_CASE(
    "gptq layout/ words hold consecutive input channels, offset by half the range; version 1 stores zero "
    "points less "
    "one") {
  const Layer up = layer(8, 8);
  const Scheme scheme = weight_only(4, 0, true);
  Solved solved;
  solved.weight = Quantized{*scheme.weight,
                            at::arange(-8, 0, at::kChar).expand({8, 8}).contiguous(),
                            at::ones({8, 1}, at::kHalf),
                            {},
                            {}};
  for (const int version : {1, 2}) {
    const InMemory reader = stored(GptqFormat(version), up, scheme, solved);
    CHECK(at::equal(reader.values.at(up.name + ".qweight"), at::full({1, 8}, 0x76543210, at::kInt)));
    const auto zeros = static_cast<uint32_t>(reader.values.at(up.name + ".qzeros").item<int32_t>());
    CHECK(zeros == (version == 1 ? 0x77777777u : 0x88888888u));
  }
}

TEST_CASE("gptq layout/ scattered groups are stored, and the configuration tells of them") {
  const GptqFormat format(1);
  const Layer up = layer(32, 64);
  const Scheme scheme = weight_only(4, 16, true);
  Solved solved = solve(up, scheme, at::kHalf);
  auto& quantized = std::get<Quantized>(solved.weight);
  quantized.group_index = at::arange(64, at::kInt).div(16, "floor").to(at::kInt);
  const InMemory plain = stored(format, up, scheme, solved);
  CHECK(!quant::has_scattered_groups(quantized));
  CHECK((nlohmann::json::parse(config_of(format, {{up.name, scheme}}))["desc_act"] == false));
  quantized.group_index = at::arange(64, at::kInt).remainder(4).to(at::kInt);
  check_round_trip(format, up, scheme, solved);
  CHECK(quant::has_scattered_groups(quantized));
  CHECK((nlohmann::json::parse(config_of(format, {{up.name, scheme}}, {}, {}, true))["desc_act"] == true));
}

TEST_CASE("gptq layout/ damaged checkpoints are refused with the tensor's name") {
  for (const int bits : {2, 3, 4, 8})
    check_damage(GptqFormat(2), layer(32, 64), weight_only(bits, 16, false));
  const GptqFormat format(1);
  const Layer up = layer(32, 64);
  const Scheme scheme = weight_only(4, 16, true);
  const auto put = [&](const std::string& suffix, const at::Tensor& value) {
    InMemory reader = stored(format, up, scheme);
    reader.put(up.name + suffix, value);
    return verdict(format, reader, config_of(format, {{up.name, scheme}}));
  };
  for (const int group : {-1, 4})
    CHECK(put(".g_idx", at::full({64}, group, at::kInt)).find(".g_idx") != std::string::npos);
  CHECK(put(".scales", at::full({4, 32}, NAN, at::kHalf)).find("NaN") != std::string::npos);
  CHECK(put(".scales", at::full({4, 32}, -1, at::kHalf)).find("negative") != std::string::npos);
  CHECK(put(".qzeros", at::zeros({4, 4}, at::kInt)).find(".qzeros") != std::string::npos);
  CHECK(put(".weight", at::ones({32, 64})).find(".weight") != std::string::npos);
  CHECK(put(".scales", at::ones({4, 32}, at::kBFloat16)) == "accepted");
}

TEST_CASE("gptq layout/ zero points of version 1 are one more than stored, and none is beyond the codes") {
  const GptqFormat format(1);
  const Layer up = layer(32, 32);
  const std::string config =
      R"({"quant_method":"gptq","bits":4,"group_size":-1,"sym":false,"checkpoint_format":"gptq"})";
  InMemory reader = stored(format, up, weight_only(4, 0, true));
  const auto with_zero = [&](int signed_code) {
    reader.put(up.name + ".qzeros", pack_rows(at::full({1, 32}, signed_code, at::kChar), 4));
    return verdict(format, reader, config);
  };
  CHECK(with_zero(-8) == "accepted");
  const auto layers = format.stored_layers(reader, config);
  REQUIRE(layers.ok());
  CHECK(std::get<Quantized>(format.decode(layers->front(), reader)->weight).zero.eq(-7).all().item<bool>());
  CHECK(with_zero(7).find(".qzeros") != std::string::npos);
}

TEST_CASE("gptq layout/ schemes and shapes that it cannot hold are refused before any weight is read") {
  const auto code = [](int version, const Layer& layer, const Scheme& scheme) {
    return GptqFormat(version).layout(layer, scheme, at::kBFloat16).status().code();
  };
  CHECK(code(1, layer(32, 64), weight_only(4, 32, true)) == Code::kOk);
  CHECK(code(1, layer(32, 64), weight_only(4, 32, false)) == Code::kUnsupported);
  CHECK(code(2, layer(32, 64), weight_only(4, 32, false)) == Code::kOk);
  CHECK(code(2, layer(32, 64), weight_only(5, 32, true)) == Code::kUnsupported);
  CHECK(code(2, layer(32, 64), weight_only(4, 48, true)) == Code::kUnsupported);
  CHECK(code(2, layer(12, 64), weight_only(4, 32, true)) == Code::kUnsupported);
  CHECK(code(2, layer(32, 48), weight_only(3, 0, true)) == Code::kUnsupported);
  for (const char* name : {"w8a8", "fp8_dynamic", "fp8_a16", "2:4"}) {
    CHECK(code(2, layer(32, 128), *scheme_from_name(name)) == Code::kUnsupported);
  }
}

TEST_CASE(
    "gptq layout/ other widths and float layers are told under dynamic, by which reading finds every layer's "
    "own") {
  const GptqFormat format(2);
  std::map<std::string, Scheme> schemes;
  std::vector<std::string> floats;
  for (int i = 0; i < 12; ++i) {
    const std::string block = "model.layers." + std::to_string(i);
    schemes[block + ".mlp.up_proj"] = weight_only(4, 32, true);
    schemes[block + ".self_attn.o_proj"] = weight_only(i == 3 ? 8 : 4, 32, true);
    schemes[block + ".mlp.down_proj"] = weight_only(3, 0, false);
    floats.push_back(block + ".self_attn.v_proj");
  }
  const auto config = GptqConfig::parse(config_of(format, schemes, floats));
  REQUIRE(config.ok());
  for (const auto& [name, scheme] : schemes) {
    const auto found = config->find("model.language_" + name);
    REQUIRE(found.ok());
    CHECK((*found == *scheme.weight));
  }
  for (const std::string& name : floats) CHECK(!config->find(name).ok());
}

TEST_CASE(
    "gptq layout/ where layers are left in float, the ends of names of all others tell transformers which to "
    "replace") {
  const GptqFormat format(1);
  const Scheme scheme = weight_only(4, 32, true);
  const auto listed = [&](const std::map<std::string, Scheme>& schemes,
                          const std::vector<std::string>& floats) {
    return nlohmann::json::parse(config_of(format, schemes, floats))
        .value("modules_in_block_to_quantize", nlohmann::json());
  };
  CHECK(listed({{"model.layers.0.mlp.up_proj", scheme}}, {}).is_null());
  const std::string a = "model.layers.1.mlp.up_proj", b = "model.layers.11.mlp.up_proj",
                    c = "model.layers.1.self_attn.o_proj";
  CHECK((listed({{a, scheme}, {b, scheme}}, {c}) == nlohmann::json::parse(R"([["mlp.up_proj"]])")));
  CHECK((listed({{a, scheme}, {c, scheme}}, {b}) ==
         nlohmann::json::parse(R"([["layers.1.mlp.up_proj", "self_attn.o_proj"]])")));
  CHECK((listed({{b, scheme}}, {a}) == nlohmann::json::parse(R"([["11.mlp.up_proj"]])")));
}

TEST_CASE(
    "gptq layout/ the side file is the configuration, and layers that engines merge are told by their merged "
    "name "
    "too") {
  const GptqFormat format(1);
  ModelPlan plan;
  plan.blocks.emplace_back();
  OutputModel model;
  model.plan = &plan;
  for (const auto& [name, role, bits] :
       {std::tuple("q_proj", Role::kQuery, 8), std::tuple("k_proj", Role::kKey, 8),
        std::tuple("v_proj", Role::kValue, 8), std::tuple("o_proj", Role::kAttentionOutput, 4),
        std::tuple("a_proj", Role::kOther, 4), std::tuple("b_proj", Role::kOther, 4),
        std::tuple("c_proj", Role::kOther, 4)}) {
    Layer one = layer(32, 32, std::string("model.layers.0.self_attn.") + name);
    one.role = role;
    plan.blocks[0].layers.push_back(one);
    model.schemes[one.name] = weight_only(bits, 0, true);
  }
  const auto config = format.quantization_config(model);
  const auto files = format.side_files(model);
  REQUIRE(config.ok());
  REQUIRE(files.ok());
  CHECK((nlohmann::json::parse(files->at("quantize_config.json")) == nlohmann::json::parse(*config)));
  const auto parsed = GptqConfig::parse(*config);
  REQUIRE(parsed.ok());
  CHECK(parsed->find("model.layers.5.self_attn.qkv_proj")->bits == 8);
  CHECK(parsed->find("model.layers.5.self_attn.o_proj")->bits == 4);
}

TEST_CASE("gptq layout/ broken configurations are refused") {
  for (const char* text :
       {"", "[]", "{}", R"({"bits":4})", R"({"bits":"4","group_size":128})", R"({"bits":5,"group_size":128})",
        R"({"bits":4,"group_size":0})", R"({"bits":4,"group_size":128,"dynamic":[]})",
        R"({"bits":4,"group_size":128,"dynamic":{"(":{}}})",
        R"({"bits":4,"group_size":128,"dynamic":{"a":3}})",
        R"({"bits":4,"group_size":128,"pack_dtype":"int64"})"}) {
    CAPTURE(text);
    CHECK(!GptqConfig::parse(text).ok());
  }
}

TEST_CASE("gptq layout/ each version recognises its own configuration only") {
  const std::string v1 = R"({"quant_method":"gptq","checkpoint_format":"gptq"})",
                    v2 = R"({"quant_method":"gptq","format":"gptq_v2"})";
  CHECK(GptqFormat(1).recognises(v1, {}));
  CHECK(GptqFormat(1).recognises(R"({"quant_method":"gptq"})", {}));
  CHECK(!GptqFormat(1).recognises(v2, {}));
  CHECK(GptqFormat(2).recognises(v2, {}));
  for (const char* text :
       {"", "{broken", R"({"quant_method":"awq"})", R"({"quant_method":"gptq","format":"marlin"})"}) {
    CHECK(!GptqFormat(1).recognises(text, {}));
  }
}
