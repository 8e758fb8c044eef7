#include "common/files/json_config.hpp"

#include <doctest/doctest.h>

using slim::model::JsonConfig;

static JsonConfig config_of(const char* text) {
  auto config = JsonConfig::parse(text, "config.json");
  REQUIRE(config.ok());
  return *config;
}

TEST_CASE("json_config/ present keys are read, missing and null ones fall back") {
  const auto config =
      config_of(R"({"a": 3, "b": 1e-6, "c": true, "d": "x", "e": [1, 2], "f": null, "g": 7})");
  CHECK(config.integer("a") == 3);
  CHECK(config.number("b") == 1e-6);
  CHECK(config.number("a") == 3.0);
  CHECK(config.boolean("c"));
  CHECK(config.text("d") == "x");
  CHECK(config.integers("e") == std::vector<int64_t>{1, 2});
  CHECK(config.integers("g") == std::vector<int64_t>{7});
  CHECK(config.integer("f", 5) == 5);
  CHECK(config.integer("missing", 6) == 6);
  CHECK_FALSE(config.has("f"));
  CHECK(config.status().ok());
}

TEST_CASE("json_config/ the first error names file, key, found and expected") {
  const auto config = config_of(R"({"text_config": {"heads": "four"}, "depth": 0})");
  const auto text = config.child("text_config");
  CHECK(text.integer("heads") == 0);
  CHECK(config.integer("depth") == 0);
  CHECK(config.status().code() == slim::Code::kCorrupt);
  CHECK(config.status().message() ==
        "config.json: text_config.heads is \"four\", expected an integer from 1 to 2147483647");
}

TEST_CASE("json_config/ a required key that is missing is an error, in a missing child too") {
  const auto config = config_of("{}");
  config.child("vision_config").integer("depth");
  CHECK(config.status().message() == "config.json: vision_config.depth is missing");
}

TEST_CASE("json_config/ integers outside the range are refused, beyond 64 bits too") {
  for (const char* value : {"0", "-1", "2147483648", "18446744073709551615", "1.5", "1e400"}) {
    const auto config = JsonConfig::parse("{\"n\": " + std::string(value) + "}", "config.json");
    if (!config.ok()) continue;  // 1e400 is no JSON number for every parser
    config->integer("n");
    CHECK_MESSAGE(!config->status().ok(), value);
  }
}

TEST_CASE("json_config/ what is no object is refused") {
  for (const char* text : {"", "[]", "3", "{", "{\"a\":}"})
    CHECK_FALSE(JsonConfig::parse(text, "config.json").ok());
}
