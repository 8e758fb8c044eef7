#include "single_layer.h"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::testing;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Algorithm> rtn(const Options& changes = {}) {
  return create(slim_plugin_v1, {{"range", "minmax"}, {"arithmetic", "fp32"}}, changes);
}

/// Every scheme that rounds, integers with groups of 16.
std::vector<Scheme> schemes() {
  std::vector<Scheme> list;
  for (const std::string& name : scheme_names()) {
    const Scheme plain = scheme(name);
    if (!plain.weight || plain.sparsity) continue;
    list.push_back(plain.weight->granularity == Granularity::kGroup ? scheme(name, 16) : plain);
    if (list.back().weight->granularity == Granularity::kGroup) list.push_back(scheme(name, -1));
  }
  return list;
}

Solved round(const Scheme& scheme, const at::Tensor& weight, const Options& options = {},
             at::ScalarType scales = at::kFloat) {
  SingleLayer layer(scheme, {weight}, scales);
  const auto algorithm = rtn(options);
  at::manual_seed(7);
  layer.observe(*algorithm, {at::randn({12, weight.size(1)})});
  return solve(*algorithm, layer);
}

double error(const Solved& solved, const at::Tensor& weight) {
  return (quant::decode(quantized(solved)) - weight).square().sum().item<double>();
}

}  // namespace

TEST_CASE("rtn/ symmetric groups: scale 2 max|w| / (2^b - 1), codes the nearest integers, ties to even") {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({9, 64});
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t group : {16, 64}) {
      const Scheme wanted = scheme("w" + std::to_string(bits) + "a16", group == 64 ? -1 : group);
      const Solved solved = round(wanted, weight);
      const at::Tensor groups = weight.view({9, -1, group});
      const double steps = std::pow(2.0, bits) - 1, half = std::pow(2.0, bits - 1);
      const at::Tensor scale = groups.abs().amax(-1) / (steps / 2);
      CHECK(same(quantized(solved).scale, scale));
      const at::Tensor codes = (groups / scale.unsqueeze(-1)).round().clamp(-half, half - 1).view({9, 64});
      CHECK(same(quantized(solved).codes, codes.to(at::kChar)));
      CHECK(!quantized(solved).zero.defined());
      CHECK(!quantized(solved).group_index.defined());
    }
  }
}

TEST_CASE("rtn/ zero points: the range holds zero, spans 2^b - 1 steps, and no weight in it is off by more than half a step") {
  at::manual_seed(2);
  for (const int bits : {2, 3, 4, 8}) {
    for (const double shift : {0.0, 4.0, -4.0}) {
      const at::Tensor weight = at::randn({5, 48}) + shift, groups = weight.view({5, -1, 16});
      const Solved solved = round(scheme("w" + std::to_string(bits) + "a16_asym", 16), weight);
      const at::Tensor low = groups.amin(-1).clamp_max(0), high = groups.amax(-1).clamp_min(0);
      CHECK(same(quantized(solved).scale, (high - low) / (std::pow(2.0, bits) - 1)));
      CHECK(quantized(solved).zero.sizes() == quantized(solved).scale.sizes());
      const at::Tensor off = (quant::decode(quantized(solved)) - weight).abs().view({5, -1, 16}).amax(-1);
      // The zero point is rounded too: one end of the range may move by half a step.
      CHECK((off <= quantized(solved).scale * 1.0001).all().item<bool>());
    }
  }
}

TEST_CASE("rtn/ only static activation scales ask for a statistic, and they are those of the extremes") {
  for (const Scheme& each : schemes()) {
    SingleLayer layer(each, {at::randn({8, 32})}, at::kFloat);
    const auto algorithm = rtn();
    const at::Tensor x = at::randn({10, 32}) + 1;
    layer.observe(*algorithm, {x});
    const bool is_static = each.input && !each.input->dynamic;
    CHECK(layer.requests.made.size() == (is_static ? 1 : 0));
    CHECK(layer.requests.regions.empty());
    const Solved solved = solve(*algorithm, layer);
    REQUIRE(solved.input_scale.defined() == is_static);
    if (!is_static) continue;
    const at::Tensor back =
        quant::fake_quantize_activation(x, *each.input, solved.input_scale, solved.input_zero);
    const double step =
        each.input->type == NumberType::kInt ? solved.input_scale.item<double>() : x.abs().max().item<double>() / 16;
    CHECK((back - x).abs().max().item<double>() <= step * 1.0001);
  }
}

TEST_CASE("rtn/ the searched range never has a larger error than the extremes") {
  at::manual_seed(3);
  const at::Tensor weight = at::randn({24, 128}).pow(3);
  for (const Scheme& each : schemes())
    CHECK(error(round(each, weight, {{"range", "mse"}}), weight) <= error(round(each, weight), weight));
}

TEST_CASE("rtn/ layers that engines merge share one per-tensor scale, that of their largest weight") {
  const std::vector<at::Tensor> weights{at::randn({8, 16}), at::randn({4, 16}) * 7, at::randn({4, 16})};
  SingleLayer layer(scheme("fp8_dynamic_tensor"), weights, at::kFloat);
  const auto algorithm = rtn();
  layer.observe(*algorithm);
  for (LayerId id = 0; id < 3; ++id) {
    layer.select(id);
    CHECK(same(quantized(solve(*algorithm, layer)).scale, (at::cat(weights).abs().max() / 448).view({1, 1})));
  }
}

TEST_CASE("rtn/ more bits and smaller groups round better") {
  at::manual_seed(4);
  const at::Tensor weight = at::randn({16, 128}) * at::randn({1, 128}).exp();
  double last = std::numeric_limits<double>::infinity();
  for (const char* name : {"w2a16", "w3a16", "w4a16", "w8a16"}) {
    const double grouped = error(round(scheme(name, 16), weight), weight);
    CHECK(grouped < last);
    CHECK(grouped < error(round(scheme(name, -1), weight), weight));
    CHECK(error(round(scheme(std::string(name) + "_asym", 16), weight), weight) < grouped);
    last = grouped;
  }
}

TEST_CASE("rtn/ zero rows, one column, one row, odd shapes, bf16 and fp16: scales are positive and finite, zeros stay zero") {
  for (const auto& shape : std::vector<std::vector<int64_t>>{{1, 16}, {5, 48}, {33, 144}, {5, 1}, {1, 7}, {129, 131}}) {
    for (const Scheme& each : schemes()) {
      if (each.weight->granularity == Granularity::kGroup && shape[1] % each.weight->group_size != 0) continue;
      for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
        at::manual_seed(5);
        at::Tensor weight = at::randn({shape[0], shape[1]}) * 0.05;
        weight[0].zero_();
        const Solved solved = round(each, weight.to(dtype), {}, dtype);
        const at::Tensor scale = quantized(solved).scale.to(at::kFloat);
        CHECK((at::isfinite(scale) & (scale > 0)).all().item<bool>());
        CHECK(quant::decode(quantized(solved))[0].abs().max().item<double>() == 0);
        CHECK(quantized(solved).codes.sizes() == weight.sizes());
      }
    }
  }
}

TEST_CASE("rtn/ NaN and Inf are refused with the tensor's name") {
  for (const double bad : {NAN, INFINITY, -INFINITY}) {
    for (const Scheme& each : schemes()) {
      at::Tensor weight = at::randn({8, 32});
      weight[3][4] = bad;
      SingleLayer layer(each, {weight});
      const auto algorithm = rtn();
      layer.observe(*algorithm, {at::randn({4, 32})});
      const auto solved = algorithm->solve(layer);
      REQUIRE(!solved.ok());
      CHECK(solved.status().code() == Code::kNumeric);
      CHECK(solved.status().message().find("layer0.weight") != std::string::npos);
    }
  }
}

TEST_CASE("rtn/ the same input gives the same bytes") {
  at::manual_seed(6);
  const at::Tensor weight = at::randn({70, 144});
  for (const Scheme& each : schemes()) {
    const Solved a = round(each, weight, {{"range", "mse"}}), b = round(each, weight, {{"range", "mse"}});
    CHECK(same(quantized(a).codes, quantized(b).codes));
    CHECK(same(quantized(a).scale, quantized(b).scale));
    CHECK(same(quantized(a).zero, quantized(b).zero));
  }
}

TEST_CASE("rtn/ pruning is refused with what does it, everything else is taken") {
  const auto algorithm = rtn();
  for (const Scheme& each : schemes()) CHECK(algorithm->accepts(each).ok());
  for (const char* name : {"2:4", "2:4+w4a16"}) {
    const Status status = algorithm->accepts(scheme(name));
    CHECK(status.code() == Code::kUnsupported);
    CHECK(status.message().find("sparse") != std::string::npos);
  }
  CHECK(!algorithm->scatters_groups(scheme("w4a16")));
  CHECK(scheme_from_name(algorithm->default_scheme()).ok());
}
