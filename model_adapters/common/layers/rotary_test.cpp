#include "common/layers/rotary.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include "slim/adapter.hpp"

using namespace slim::model;

namespace {

std::vector<int64_t> values(const at::Tensor& x) {
  const auto flat = x.contiguous().flatten();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}
double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }
RopeConfig rope_of(const std::string& json) {
  const auto config = JsonConfig::parse(json, "config.json");
  REQUIRE(config.ok());
  const auto rope = read_rope(*config, 5000);
  REQUIRE_MESSAGE(config->status().ok(), config->status().message());
  return rope;
}
at::Tensor cos_of(const RopeConfig& rope, const at::Tensor& positions) {
  return Rotary(rope, 8).tables(positions, at::kFloat, at::kCPU).first;
}

}  // namespace

TEST_CASE("rotary/ old and new keys of config.json mean the same") {
  const auto old_keys =
      rope_of(R"({"rope_theta": 100, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}})");
  const auto new_keys = rope_of(
      R"({"rope_parameters": {"rope_theta": 100, "rope_type": "default", "mrope_section": [2, 1, 1]}})");
  CHECK(old_keys.theta == new_keys.theta);
  CHECK(old_keys.type == new_keys.type);
  CHECK(old_keys.sections == new_keys.sections);
  CHECK(rope_of(R"({"rope_scaling": null})").theta == 5000);
}

TEST_CASE("rotary/ products of rotated vectors depend on the distance of positions alone") {
  at::manual_seed(1);
  const Rotary rotary(rope_of("{}"), 8);
  const auto q = at::randn({1, 2, 8}), k = at::randn({1, 2, 8});
  const auto product = [&](int64_t a, int64_t b) {
    const auto [qc, qs] = rotary.tables(at::full({1}, a, at::kLong), at::kFloat, at::kCPU);
    const auto [kc, ks] = rotary.tables(at::full({1}, b, at::kLong), at::kFloat, at::kCPU);
    return (apply_rotary(q, qc, qs) * apply_rotary(k, kc, ks)).sum(-1);
  };
  CHECK(distance(product(3, 1), product(13, 11)) < 1e-4);
  CHECK(distance(product(3, 1), product(3, 2)) > 1e-3);
}

TEST_CASE("rotary/ equal positions on all axes are plain rotary, in both orders of sections") {
  const auto positions = at::arange(6, at::kLong);
  const auto three = positions.unsqueeze(0).expand({3, 6});
  const auto plain = cos_of(rope_of("{}"), positions);
  for (const char* order : {"true", "false"}) {
    const auto rope = rope_of(R"({"rope_scaling": {"mrope_section": [2, 1, 1], "mrope_interleaved": )" +
                              std::string(order) + "}}");
    CHECK(distance(plain, cos_of(rope, three)) == 0);
  }
}

TEST_CASE("rotary/ sections decide which axis turns which frequency") {
  const auto axis_of = [&](bool interleaved, int64_t frequency) {
    RopeConfig rope = rope_of("{}");
    rope.sections = {2, 1, 1};
    rope.interleaved = interleaved;
    for (int64_t axis = 0; axis < 3; ++axis) {
      auto positions = at::zeros({3, 1}, at::kLong);
      positions[axis][0] = 7;
      const auto sin = Rotary(rope, 8).tables(positions, at::kFloat, at::kCPU).second;
      if (sin[0][frequency].item<float>() != 0) return axis;
    }
    return int64_t{-1};
  };
  for (const auto& [interleaved, expected] :
       {std::pair{true, std::vector<int64_t>{0, 1, 2, 0}}, {false, {0, 0, 1, 2}}}) {
    for (int64_t i = 0; i < 4; ++i) CHECK(axis_of(interleaved, i) == expected[i]);
  }
}

TEST_CASE("rotary/ linear scaling is division of positions") {
  const auto rope = rope_of(R"({"rope_scaling": {"rope_type": "linear", "factor": 4}})");
  CHECK(distance(cos_of(rope, at::full({1}, 12, at::kLong)),
                 cos_of(rope_of("{}"), at::full({1}, 3, at::kLong))) < 1e-6);
}

TEST_CASE("rotary/ dynamic scaling ends at the trained length unless its base is fixed") {
  const auto rope =
      rope_of(R"({"max_position_embeddings": 4, "rope_scaling": {"type": "dynamic", "factor": 2}})");
  CHECK(distance(cos_of(rope, at::arange(4, at::kLong)), cos_of(rope_of("{}"), at::arange(4, at::kLong))) ==
        0);
  CHECK_THROWS_AS(cos_of(rope, at::arange(5, at::kLong)), slim::ExecError);
  const auto fixed =
      rope_of(R"({"max_position_embeddings": 4, "rope_scaling": {"type": "dynamic", "alpha": 1000}})");
  CHECK_NOTHROW(cos_of(fixed, at::arange(9, at::kLong)));
}

TEST_CASE("rotary/ an unknown scaling is an error that names the key") {
  const auto config = JsonConfig::parse(R"({"rope_scaling": {"rope_type": "spiral"}})", "config.json");
  read_rope(*config, 1);
  CHECK(config->status().message().find("rope_scaling.rope_type is \"spiral\"") != std::string::npos);
}

TEST_CASE("rotary/ patches are numbered merge block by merge block, every frame again") {
  const auto positions =
      patch_positions(at::tensor(std::vector<int64_t>{2, 2, 4}, at::kLong).view({1, 3}), 2);
  CHECK(values(positions[0]) == std::vector<int64_t>{0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1});
  CHECK(values(positions[1]) == std::vector<int64_t>{0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3});
  CHECK(patch_positions(at::empty({0, 3}, at::kLong), 2).sizes() == at::IntArrayRef{2, 0});
}

TEST_CASE("rotary/ text counts on after the longer side of an image") {
  const std::vector<VisionSpan> spans{{2, 1, 2, 3, 1}};
  const auto result = multimodal_positions(10, spans);
  CHECK(values(result.positions[0]) == std::vector<int64_t>{0, 1, 2, 2, 2, 2, 2, 2, 5, 6});
  CHECK(values(result.positions[1]) == std::vector<int64_t>{0, 1, 2, 2, 2, 3, 3, 3, 5, 6});
  CHECK(values(result.positions[2]) == std::vector<int64_t>{0, 1, 2, 3, 4, 2, 3, 4, 5, 6});
  CHECK(result.next == 7);
}

TEST_CASE("rotary/ frames lie frame_step apart, and the next position follows the largest") {
  const std::vector<VisionSpan> spans{{0, 3, 1, 1, 5}};
  const auto result = multimodal_positions(3, spans);
  CHECK(values(result.positions[0]) == std::vector<int64_t>{0, 5, 10});
  CHECK(result.next == 11);
}
