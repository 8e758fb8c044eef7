#include "write/output_json.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

using namespace slim;

namespace {

/// A format that only has something to say about config.json.
struct Talker final : Format {
  std::string quantization;
  std::map<std::string, std::string> entries;

  c10::ScalarType scale_dtype(const Scheme&, c10::ScalarType dtype) const override { return dtype; }
  Result<std::vector<TensorSpec>> layout(const Layer&, const Scheme&, c10::ScalarType) const override {
    return std::vector<TensorSpec>{};
  }
  Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&, c10::ScalarType) const override {
    return TensorMap{};
  }
  Result<std::string> quantization_config(const OutputModel&) const override { return quantization; }
  Result<std::map<std::string, std::string>> config_entries(const OutputModel&) const override {
    return entries;
  }
  bool recognises(std::string_view, const std::vector<std::string>&) const override { return false; }
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&, std::string_view) const override {
    return std::vector<StoredLayer>{};
  }
  Result<Solved> decode(const StoredLayer&, const TensorReader&) const override { return Solved{}; }
};

constexpr const char* kInput = R"({"model_type":"toy","text_config":{"width":4},"zeta":1,"alpha":[]})";

nlohmann::ordered_json config_of(const Format& format) {
  const auto text = output_config_json(kInput, format, {}, {});
  REQUIRE_MESSAGE(text.ok(), text.status().message());
  return nlohmann::ordered_json::parse(*text);
}

}  // namespace

TEST_CASE("output_config/ a cast output says its dtype wherever one stands") {
  Talker format;
  const auto cast = [&](const char* input) {
    const auto text = output_config_json(input, format, {}, at::kBFloat16);
    REQUIRE_MESSAGE(text.ok(), text.status().message());
    return nlohmann::json::parse(*text);
  };
  const auto both = cast(R"({"dtype":"float32","text_config":{"torch_dtype":"float32"},"vision_config":{}})");
  CHECK(both["dtype"] == "bfloat16");
  CHECK(both["text_config"]["torch_dtype"] == "bfloat16");
  CHECK_FALSE(both["vision_config"].contains("dtype"));
  CHECK_FALSE(both.contains("torch_dtype"));
  CHECK(cast("{}")["torch_dtype"] == "bfloat16");
}

TEST_CASE("output_config/ without anything to say it is the input's, in its order") {
  CHECK(config_of(Talker()).dump() == nlohmann::ordered_json::parse(kInput).dump());
}

TEST_CASE("output_config/ the format's quantization_config is added") {
  Talker format;
  format.quantization = R"({"quant_method":"gptq"})";
  CHECK(config_of(format)["quantization_config"]["quant_method"] == "gptq");
}

TEST_CASE("output_config/ entries go where their parent exists, and nowhere else") {
  Talker format;
  format.entries = {{"quantize", R"("w8a8")"},
                    {"text_config.quantize", R"("w8a8")"},
                    {"vision_config.quantize", R"("w8a8")"},
                    {"zeta.quantize", "1"}};
  const auto config = config_of(format);
  CHECK(config["quantize"] == "w8a8");
  CHECK(config["text_config"].dump() == R"({"width":4,"quantize":"w8a8"})");
  CHECK(!config.contains("vision_config"));
  CHECK(config["zeta"] == 1);
}

TEST_CASE("output_config/ what is no JSON is an error that names the entry") {
  Talker format;
  format.entries = {{"quantize", "w8a8"}};
  const auto text = output_config_json(kInput, format, {}, {});
  REQUIRE(!text.ok());
  CHECK(text.status().message().find("quantize") != std::string::npos);
}
