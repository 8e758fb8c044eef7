#include "single_layer.h"
#include "slim/histogram.hpp"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::testing;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

const char* const kSchemes[] = {"fp8_static",         "fp8_static_channel", "fp8_dynamic",
                                "fp8_dynamic_tensor", "fp8_block",          "fp8_a16"};

std::unique_ptr<Algorithm> fp8(const Options& changes = {}) {
  return create(slim_plugin_v1,
                {{"activation_range", "absmax"},
                 {"percentile", "99.99"},
                 {"weight_range", "minmax"},
                 {"fuse_scales", "false"},
                 {"arithmetic", "fp32"}},
                changes);
}

at::Tensor weight(int64_t out, int64_t in, uint64_t seed = 1) {
  at::manual_seed(seed);
  return at::randn({out, in}) * 0.05;
}

at::Tensor e4m3(const at::Tensor& x) { return x.to(at::kFloat8_e4m3fn).to(at::kFloat); }

}  // namespace

TEST_CASE(
    "fp8/ scales are max|w| / 448 of the tensor, the channel or the block, and codes the nearest E4M3 "
    "numbers") {
  const at::Tensor w = weight(200, 300);
  const auto algorithm = fp8();
  const auto check = [&](const char* name, const at::Tensor& largest, const at::Tensor& spread) {
    SingleLayer layer(scheme(name), {w}, at::kFloat);
    layer.observe(*algorithm, {at::randn({4, 300})});
    const Solved solved = solve(*algorithm, layer);
    CHECK(same(quantized(solved).scale, largest / 448));
    CHECK(same(quantized(solved).codes.to(at::kFloat), e4m3(w / (spread / 448))));
    CHECK(!quantized(solved).zero.defined());
  };
  const at::Tensor all = w.abs().max().view({1, 1}), rows = w.abs().amax(1, true);
  check("fp8_static", all, all);
  check("fp8_dynamic_tensor", all, all);
  check("fp8_dynamic", rows, rows);
  check("fp8_static_channel", rows, rows);
  check("fp8_a16", rows, rows);
  at::Tensor blocks = at::zeros({2, 3}), spread = at::zeros({200, 300});
  for (int64_t r = 0; r < 2; ++r) {
    for (int64_t c = 0; c < 3; ++c) {
      const auto part = [&](const at::Tensor& t) {
        return t.slice(0, r * 128, r * 128 + 128).slice(1, c * 128, c * 128 + 128);
      };
      const at::Tensor largest = part(w).abs().max();
      blocks[r][c] = largest;
      part(spread).fill_(largest);
    }
  }
  check("fp8_block", blocks, spread);
}

TEST_CASE("fp8/ only static activation scales ask for a statistic") {
  for (const char* name : kSchemes) {
    SingleLayer layer(scheme(name), {weight(8, 16)});
    layer.observe(*fp8());
    const bool is_static = std::string(name).starts_with("fp8_static");
    CHECK(layer.requests.made.size() == (is_static ? 1 : 0));
    CHECK(layer.requests.regions.empty());
  }
}

TEST_CASE("fp8/ the static activation scale is max|x| / 448 of all batches, rounded to the stored dtype") {
  const at::Tensor a = at::randn({20, 16}), b = at::randn({7, 16}) * 3;
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    SingleLayer layer(scheme("fp8_static"), {weight(8, 16)}, dtype);
    const auto algorithm = fp8();
    layer.observe(*algorithm, {a, b});
    const Solved solved = solve(*algorithm, layer);
    const at::Tensor largest = at::cat({a, b}).abs().max().to(dtype).to(at::kFloat);
    CHECK(same(solved.input_scale, (largest / 448).to(dtype).view({1})));
    CHECK(!solved.input_zero.defined());
  }
}

TEST_CASE(
    "fp8/ percentile and least-squares ranges leave a lone outlier outside, and round the rest better") {
  at::manual_seed(3);
  at::Tensor x =
      at::randn({4000, 64}) * 1e-3;  // where E4M3 has few mantissa bits left under an outlier's scale
  x[5][5] = 30;
  const auto scale_of = [&](const Options& options) {
    SingleLayer layer(scheme("fp8_static"), {weight(8, 64)}, at::kFloat);
    const auto algorithm = fp8(options);
    layer.observe(*algorithm, {x});
    return solve(*algorithm, layer).input_scale;
  };
  const at::Tensor absmax = scale_of({}),
                   percentile = scale_of({{"activation_range", "percentile"}, {"percentile", "99.9"}});
  CHECK(absmax.item<float>() == doctest::Approx(30.0 / 448));
  CHECK(percentile.item<float>() < absmax.item<float>() / 1000);
  const QuantArgs args = *scheme("fp8_static").input;
  const auto error = [&](const at::Tensor& values, const at::Tensor& scale) {
    return (quant::fake_quantize_activation(values, args, scale, {}) - values).square().sum().item<double>();
  };
  const at::Tensor mild = at::randn({1000, 64});
  SingleLayer layer(scheme("fp8_static"), {weight(8, 64)}, at::kFloat);
  const auto mse = fp8({{"activation_range", "mse"}});
  layer.observe(*mse, {mild});
  const at::Tensor found = solve(*mse, layer).input_scale;
  CHECK(error(mild, found) <= error(mild, mild.abs().max().view({1}) / 448) * 1.001);
}

TEST_CASE("fp8/ layers that engines merge share one scale on request alone") {
  const std::vector<at::Tensor> weights{weight(8, 16, 1), weight(4, 16, 2) * 7, weight(4, 16, 3)};
  for (const char* name : kSchemes) {
    const bool per_tensor = scheme(name).weight->granularity == Granularity::kTensor;
    for (const char* fuse : {"true", "false"}) {
      SingleLayer layer(scheme(name), weights);
      const auto algorithm = fp8({{"fuse_scales", fuse}});
      layer.observe(*algorithm, {at::randn({4, 16})});
      std::vector<at::Tensor> scales;
      for (LayerId id = 0; id < 3; ++id) {
        layer.select(id);
        scales.push_back(quantized(solve(*algorithm, layer)).scale);
      }
      const bool shared = per_tensor && std::string(fuse) == "true";
      CHECK(same(scales[0], scales[2]) == shared);
      if (shared) CHECK(same(scales[0], scales[1]));
    }
  }
}

TEST_CASE("fp8/ the searched weight range never has a larger error than the extremes") {
  at::Tensor w = weight(64, 256);
  for (const char* name : kSchemes) {
    const auto error = [&](const char* range) {
      SingleLayer layer(scheme(name), {w}, at::kFloat);
      const auto algorithm = fp8({{"weight_range", range}});
      layer.observe(*algorithm, {at::randn({4, 256})});
      return (quant::decode(quantized(solve(*algorithm, layer))) - w).square().sum().item<double>();
    };
    CHECK(error("mse") <= error("minmax"));
  }
}

TEST_CASE(
    "fp8/ zero rows, one column, one row, odd shapes: scales are positive and finite, zeros stay zero") {
  for (const auto& shape : std::vector<std::vector<int64_t>>{{1, 1}, {5, 1}, {1, 7}, {129, 131}, {3, 128}}) {
    for (const char* name : kSchemes) {
      at::Tensor w = weight(shape[0], shape[1]);
      w[0].zero_();
      SingleLayer layer(scheme(name), {w.to(at::kHalf)}, at::kHalf);
      const auto algorithm = fp8();
      layer.observe(*algorithm, {at::zeros({4, shape[1]})});  // an input that is always zero
      const Solved solved = solve(*algorithm, layer);
      const at::Tensor scale = quantized(solved).scale.to(at::kFloat);
      CHECK((at::isfinite(scale) & (scale > 0)).all().item<bool>());
      CHECK((quantized(solved).codes[0].to(at::kFloat) == 0).all().item<bool>());
      if (solved.input_scale.defined()) CHECK(solved.input_scale.item<double>() > 0);
    }
  }
}

TEST_CASE("fp8/ NaN and Inf are refused with the tensor's name") {
  for (const double bad : {NAN, INFINITY, -INFINITY}) {
    for (const char* name : kSchemes) {
      at::Tensor w = weight(8, 16);
      w[3][4] = bad;
      SingleLayer layer(scheme(name), {w});
      const auto algorithm = fp8();
      layer.observe(*algorithm, {at::randn({4, 16})});
      const auto solved = algorithm->solve(layer);
      REQUIRE(!solved.ok());
      CHECK(solved.status().code() == Code::kNumeric);
      CHECK(solved.status().message().find("layer0.weight") != std::string::npos);
    }
    for (const char* range : {"absmax", "percentile", "mse"}) {
      SingleLayer layer(scheme("fp8_static"), {weight(8, 16)});
      const auto algorithm = fp8({{"activation_range", range}});
      layer.observe(*algorithm, {at::randn({4, 16}), at::full({1, 16}, bad)});
      CHECK(algorithm->solve(layer).status().code() == Code::kNumeric);
    }
  }
}

TEST_CASE("fp8/ without calibration a static scheme says what is missing") {
  SingleLayer layer(scheme("fp8_static"), {weight(8, 16)});
  const auto algorithm = fp8();
  layer.observe(*algorithm);
  const auto solved = algorithm->solve(layer);
  REQUIRE(!solved.ok());
  CHECK(solved.status().message().find("--calib") != std::string::npos);
}

TEST_CASE("fp8/ the same input gives the same bytes") {
  for (const char* name : kSchemes) {
    const auto run = [&] {
      SingleLayer layer(scheme(name), {weight(130, 260)});
      const auto algorithm = fp8({{"activation_range", "mse"}, {"weight_range", "mse"}});
      at::manual_seed(9);
      layer.observe(*algorithm, {at::randn({40, 260})});
      return solve(*algorithm, layer);
    };
    const Solved a = run(), b = run();
    CHECK(same(quantized(a).codes, quantized(b).codes));
    CHECK(same(quantized(a).scale, quantized(b).scale));
    CHECK(same(a.input_scale, b.input_scale));
  }
}

TEST_CASE("fp8/ schemes of other kinds, and options that contradict each other, are refused") {
  const auto algorithm = fp8();
  for (const char* name : kSchemes) CHECK(algorithm->accepts(scheme(name)).ok());
  for (const char* name : {"w8a8", "w4a16", "w8a16", "2:4"})
    CHECK(algorithm->accepts(scheme(name)).code() == Code::kUnsupported);
  CHECK(create(slim_plugin_v1)->setup({{"fuse_scales", "true"}, {"weight_range", "mse"}}).code() ==
        Code::kInvalidArgument);
  CHECK(scheme_from_name(algorithm->default_scheme()).ok());
}
