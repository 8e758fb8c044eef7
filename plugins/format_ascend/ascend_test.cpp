#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/format_checks.hpp"
#include "description.h"
#include "slim/abi.h"
#include "slim/format.hpp"
#include "slim/quant.hpp"
#include "types.h"
#include "values.h"

using namespace slim;
using namespace slim::ascend;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Format> make_format() {
  slim_error error{};
  return std::unique_ptr<Format>(static_cast<Format*>(slim_plugin_v1.components[0].create(nullptr, &error)));
}

Layer layer(int64_t out, int64_t in, bool bias = false) {
  Layer layer;
  layer.name = "model.layers.0.mlp.up_proj";
  layer.out = out;
  layer.in = in;
  if (bias) layer.bias = layer.name + ".bias";
  return layer;
}

Solved solve(const Layer& layer, const Scheme& scheme, at::ScalarType scale_dtype) {
  at::manual_seed(static_cast<uint64_t>(layer.out * 1000 + layer.in));
  const at::Tensor w = at::randn({layer.out, layer.in});
  const auto params = quant::choose_params(w, *scheme.weight, scale_dtype);
  REQUIRE(params.ok());
  Solved solved;
  solved.weight =
      Quantized{*scheme.weight, quant::encode(w, *params, *scheme.weight), params->scale, params->zero, {}};
  if (!layer.bias.empty()) solved.bias = at::randn({layer.out}) * 10;
  if (scheme.input && !scheme.input->dynamic) {
    solved.input_scale = at::full({1}, 0.0173, scale_dtype);
    solved.input_zero = at::full({1}, -53, at::kChar);
  }
  return solved;
}

struct Written {
  formats::checks::InMemory reader;
  std::string description;
};

Written write(const Layer& layer, const Scheme& scheme, const Solved& solved, at::ScalarType dtype) {
  const auto format = make_format();
  Written written;
  OutputModel output;
  output.dtype = dtype;
  output.schemes[layer.name] = scheme;
  const auto tensors = format->encode(layer, scheme, solved, dtype);
  REQUIRE_MESSAGE(tensors.ok(), tensors.status().message());
  for (const auto& [name, value] : *tensors) written.reader.put(name, value);
  if (!layer.bias.empty()) written.reader.put(layer.bias, solved.bias.to(dtype));
  const auto specs = format->layout(layer, scheme, dtype);
  REQUIRE(specs.ok());
  CHECK(specs->size() == tensors->size());
  for (const TensorSpec& spec : *specs) {
    CHECK(written.reader.specs.at(spec.name).dtype == spec.dtype);
    CHECK(written.reader.specs.at(spec.name).shape == spec.shape);
  }
  output.tensors = written.reader.specs;
  written.description = format->side_files(output)->at("quant_model_description.json");
  return written;
}

Result<Solved> read_back(const Written& written) {
  const auto format = make_format();
  CHECK(format->recognises(written.description, {}));
  auto layers = format->stored_layers(written.reader, written.description);
  if (!layers.ok()) return layers.status();
  REQUIRE(layers->size() == 1);
  return format->decode(layers->front(), written.reader);
}

}  // namespace

TEST_CASE("ascend/ what is written decodes to the same weights, for every type, dtype and odd shape") {
  for (const char* name : {"w8a8s", "w8a8_static", "w8a8", "w8a16", "w8a16_asym", "w4a16", "w4a16_asym"}) {
    for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
      for (const auto& one_case : {std::pair<int64_t, int64_t>{2, 64}, {34, 192}, {6, 64}}) {
        const auto& out = std::get<0>(one_case);
        const auto& in = std::get<1>(one_case);
        CAPTURE(name);
        CAPTURE(out);
        const Layer one = layer(out, in, /*bias=*/true);
        const Scheme scheme = *scheme_from_name(
            name, std::string(name).ends_with("a8") || std::string(name).starts_with("w8a8") ? 0 : 32);
        Solved solved = solve(one, scheme, make_format()->scale_dtype(scheme, dtype));
        solved.bias = solved.bias.to(dtype).to(at::kFloat);
        const Written written = write(one, scheme, solved, dtype);
        const auto decoded = read_back(written);
        REQUIRE_MESSAGE(decoded.ok(), decoded.status().message());
        const auto& expected = std::get<Quantized>(solved.weight);
        const auto& found = std::get<Quantized>(decoded->weight);
        CHECK(at::equal(found.codes, expected.codes));
        // W8A8S stores deq_scale alone: dividing by input_scale may move the last bit. All others come back bit for bit.
        const double tolerance = scheme.name == "w8a8s" ? 1e-6 : 0;
        CHECK(at::allclose(quant::decode(found), quant::decode(expected), tolerance, 0));
        CHECK(decoded->input_scale.defined() == solved.input_scale.defined());
      }
    }
  }
}

TEST_CASE("ascend/ static layers hold deq_scale and quant_bias of the formulas") {
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const Layer one = layer(8, 32, /*bias=*/true);
    const Scheme scheme = *scheme_from_name("w8a8s");
    const Solved solved = solve(one, scheme, at::kFloat);
    const Written written = write(one, scheme, solved, dtype);
    const auto& quantized = std::get<Quantized>(solved.weight);
    const at::Tensor deq = written.reader.values.at(one.name + ".deq_scale");
    REQUIRE((deq.scalar_type() == (dtype == at::kHalf ? at::kLong : at::kFloat)));
    for (int64_t row = 0; row < one.out; ++row) {
      const float product = solved.input_scale.item<float>() * quantized.scale[row][0].item<float>();
      int32_t bits = 0;
      std::memcpy(&bits, &product, sizeof bits);
      if (dtype == at::kHalf)
        CHECK(deq[row].item<int64_t>() == bits);
      else
        CHECK(deq[row].item<float>() == product);
      int64_t sum = 0;
      for (int64_t column = 0; column < one.in; ++column) sum += quantized.codes[row][column].item<int64_t>();
      const double value =
          static_cast<double>(solved.bias[row].item<float>()) / static_cast<double>(product) +
          53.0 * static_cast<double>(sum);
      CHECK(written.reader.values.at(one.name + ".quant_bias")[row].item<double>() == std::nearbyint(value));
    }
    CHECK_FALSE(written.reader.specs.contains(one.name + ".weight_scale"));
  }
}

TEST_CASE("ascend/ W8A8S may have one scale for the matrix") {
  Scheme scheme = *scheme_from_name("w8a8s");
  scheme.weight->granularity = Granularity::kTensor;
  const Layer one = layer(8, 32);
  const Written written = write(one, scheme, solve(one, scheme, at::kFloat), at::kBFloat16);
  CHECK(written.reader.specs.at(one.name + ".deq_scale").shape == std::vector<int64_t>{1});
  CHECK(read_back(written).ok());
}

TEST_CASE("ascend/ W4A16 packs neighbouring rows, the even one in the low nibble") {
  const at::Tensor codes = at::tensor({-8, 7, -1, 3}).to(at::kChar).view({2, 2});
  const at::Tensor packed = pack_row_pairs(codes);
  CHECK(packed.sizes() == at::IntArrayRef({1, 2}));
  CHECK((packed[0][0].item<int>() & 0xff) == 0xf8);
  CHECK((packed[0][1].item<int>() & 0xff) == 0x37);
  CHECK(at::equal(unpack_row_pairs(packed), codes));
}

TEST_CASE("ascend/ the description names every tensor's type, and config.json the model's") {
  const Layer one = layer(4, 32, /*bias=*/true);
  const Scheme scheme = *scheme_from_name("w8a8s");
  const Written written = write(one, scheme, solve(one, scheme, at::kFloat), at::kBFloat16);
  const auto json = nlohmann::json::parse(written.description);
  CHECK(json["version"] == "1.0.0");
  CHECK(json["model_quant_type"] == "W8A8S");
  CHECK(json[one.name + ".weight"] == "W8A8S");
  CHECK(json[one.name + ".quant_bias"] == "W8A8S");
  CHECK(json[one.name + ".bias"] == "FLOAT");
  const auto format = make_format();
  CHECK(format->weights_stem(scheme) == "quant_model_weight_w8a8s");
  OutputModel output;
  output.schemes = {{"a", *scheme_from_name("w8a8")}, {"b", scheme}};
  CHECK(*model_type(output) == Type::kW8A8S);
  const auto entries = *format->config_entries(output);
  CHECK(entries.at("quantize") == "\"w8a8s\"");
  CHECK(entries.at("text_config.quantize") == "\"w8a8s\"");
  CHECK(format->quantization_config(output)->empty());
}

TEST_CASE("ascend/ schemes without a type are refused with formats that hold them") {
  const auto format = make_format();
  for (const char* name : {"fp8_static", "fp8_dynamic", "fp8_block", "w3a16", "w2a16_asym", "2:4"}) {
    const auto specs = format->layout(layer(64, 128), *scheme_from_name(name), at::kBFloat16);
    CAPTURE(name);
    REQUIRE_FALSE(specs.ok());
    CHECK(specs.status().code() == Code::kUnsupported);
    CHECK(specs.status().message().find("compressed-tensors") != std::string::npos);
  }
  CHECK(format->layout(layer(64, 128), *scheme_from_name("w4a16", -1), at::kBFloat16).status().code() ==
        Code::kUnsupported);
  CHECK(format->layout(layer(63, 128), *scheme_from_name("w4a16"), at::kBFloat16).status().code() ==
        Code::kUnsupported);
  CHECK(format->layout(layer(64, 130), *scheme_from_name("w8a16"), at::kBFloat16).status().code() ==
        Code::kUnsupported);
}

TEST_CASE("ascend/ damaged checkpoints are refused by the tensor's name") {
  const Layer one = layer(4, 32);
  const Scheme scheme = *scheme_from_name("w8a8s");
  const Written good = write(one, scheme, solve(one, scheme, at::kFloat), at::kBFloat16);
  const auto damaged = [&](const std::string& suffix, const at::Tensor& value) {
    Written bad = good;
    bad.reader.put(one.name + suffix, value);
    return read_back(bad).status();
  };
  CHECK(read_back(good).ok());
  for (const auto& one_case : std::vector<std::pair<std::string, at::Tensor>>{
           {".deq_scale", at::zeros({4})},
           {".deq_scale", at::full({4}, std::numeric_limits<float>::infinity())},
           {".deq_scale", at::full({4}, -1, at::kLong)},
           {".deq_scale", at::ones({3})},
           {".input_scale", at::full({1}, std::numeric_limits<float>::quiet_NaN())},
           {".input_offset", at::full({1}, 0.5)},
           {".input_offset", at::full({1}, 300.0)},
           {".quant_bias", at::full({4}, 12345, at::kInt)},
           {".weight", at::zeros({4}, at::kChar)}}) {
    const auto& suffix = std::get<0>(one_case);
    const auto& value = std::get<1>(one_case);
    CAPTURE(suffix);
    const Status status = damaged(suffix, value);
    CHECK(status.code() == Code::kCorrupt);
    CHECK(status.message().find(one.name) != std::string::npos);
  }
  Written bad = good;
  bad.reader.specs.erase(one.name + ".quant_bias");
  CHECK(read_back(bad).status().message().find("quant_bias") != std::string::npos);
  bad = good;
  bad.reader.put("model.extra.weight", at::zeros({1}));
  CHECK(read_back(bad).status().message().find("not described") != std::string::npos);
}

TEST_CASE("ascend/ compressed folders name the command that unpacks them") {
  const Layer one = layer(4, 32);
  const Scheme scheme = *scheme_from_name("w8a8s");
  Written written = write(one, scheme, solve(one, scheme, at::kFloat), at::kBFloat16);
  for (size_t at = 0; (at = written.description.find("\"W8A8S\"", at)) != std::string::npos;)
    written.description.replace(at, 7, "\"W8A8SC\"");
  const Status status = read_back(written).status();
  CHECK(status.code() == Code::kUnsupported);
  CHECK(status.message().find("--decompress") != std::string::npos);
}

TEST_CASE("ascend/ a bias that does not fit 32 bits is an error that names the row") {
  const at::Tensor codes = at::ones({2, 4}, at::kChar), offset = at::zeros({1}, at::kChar);
  const auto result = quant_bias(codes, at::tensor({1.0F, 1e-12F}), offset, at::tensor({1.0F, 1.0F}));
  CHECK(result.status().code() == Code::kNumeric);
  CHECK(result.status().message().starts_with("row 1: "));
}

TEST_CASE("ascend/ other descriptions and configurations are not recognised") {
  const auto format = make_format();
  CHECK_FALSE(format->recognises("", {"quant_model_description.json"}));
  CHECK_FALSE(format->recognises(R"({"quant_method":"awq"})", {}));
  CHECK_FALSE(format->recognises("{", {}));
  CHECK(Description::parse("[]").status().code() == Code::kCorrupt);
  CHECK(Description::parse(R"({"a.weight": 3})").status().code() == Code::kCorrupt);
}
