#include "single_layer.h"
#include "slim/histogram.hpp"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::testing;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Algorithm> int8(const Options& changes = {}) {
  return create(slim_plugin_v1,
                {{"activation_range", "minmax"},
                 {"percentile", "99.99"},
                 {"weight_range", "minmax"},
                 {"arithmetic", "fp32"}},
                changes);
}

const std::vector<Scheme>& schemes() {
  static const std::vector<Scheme> list{scheme("w8a8"), scheme("w8a8_static"), scheme("w8a8_static_sym"),
                                        scheme("w8a16", -1), scheme("w8a16_asym", 16)};
  return list;
}

at::Tensor weight(int64_t out, int64_t in, uint64_t seed = 1) {
  at::manual_seed(seed);
  return at::randn({out, in}) * 0.05;
}

}  // namespace

TEST_CASE("int8/ a row's scale is max|w| / 127.5, and codes are the nearest integers, ties to even") {
  const at::Tensor w = weight(33, 70);
  for (const char* name : {"w8a8", "w8a8_static", "w8a8_static_sym"}) {
    SingleLayer layer(scheme(name), {w}, at::kFloat);
    const auto algorithm = int8();
    layer.observe(*algorithm, {at::randn({4, 70})});
    const Solved solved = solve(*algorithm, layer);
    const at::Tensor scale = w.abs().amax(1, true) / 127.5;
    CHECK(same(quantized(solved).scale, scale));
    CHECK(same(quantized(solved).codes, (w / scale).clamp(-128, 127).round().to(at::kChar)));
  }
}

TEST_CASE("int8/ only static activation scales ask for a statistic") {
  for (const Scheme& scheme : schemes()) {
    for (const char* range : {"minmax", "histogram", "percentile"}) {
      SingleLayer layer(scheme, {weight(8, 16)});
      layer.observe(*int8({{"activation_range", range}}));
      CHECK(layer.requests.made.size() == (scheme.input && !scheme.input->dynamic ? 1 : 0));
      CHECK(layer.requests.regions.empty());
    }
  }
}

TEST_CASE("int8/ static activation ranges hold zero, and span 255 steps between the extremes") {
  for (const double shift : {0.0, 5.0, -5.0}) {
    const at::Tensor x = at::randn({50, 16}) + shift;
    SingleLayer layer(scheme("w8a8_static"), {weight(8, 16)}, at::kFloat),
        symmetric(scheme("w8a8_static_sym"), {weight(8, 16)}, at::kFloat);
    const auto algorithm = int8();
    layer.observe(*algorithm, {x});
    symmetric.observe(*algorithm, {x});
    const Solved solved = solve(*algorithm, layer);
    const at::Tensor low = x.min().clamp_max(0), high = x.max().clamp_min(0), scale = (high - low) / 255;
    CHECK(same(solved.input_scale, scale.view({1})));
    CHECK(same(solved.input_zero, (-128 - low / scale).clamp(-128, 127).round().to(at::kChar).view({1})));
    const Solved plain = solve(*algorithm, symmetric);
    CHECK(same(plain.input_scale, (x.abs().max() / 127.5).view({1})));
    CHECK(!plain.input_zero.defined());
  }
}

TEST_CASE("int8/ histogram ranges round activations with outliers better than extremes do") {
  at::manual_seed(2);
  at::Tensor x = at::randn({4000, 64});
  x[3][3] = 9;
  for (const char* name : {"w8a8_static", "w8a8_static_sym"}) {
    const auto error = [&](const char* range) {
      SingleLayer layer(scheme(name), {weight(8, 64)}, at::kFloat);
      const auto algorithm = int8({{"activation_range", range}, {"percentile", "99.999"}});
      layer.observe(*algorithm, {x.narrow(0, 0, 1500), x.narrow(0, 1500, 2500)});
      const Solved solved = solve(*algorithm, layer);
      return (quant::fake_quantize_activation(x, *scheme(name).input, solved.input_scale, solved.input_zero) -
              x)
          .square()
          .mean()
          .item<double>();
    };
    CHECK(error("histogram") < 0.95 * error("minmax"));
    CHECK(error("histogram") <= 1.01 * error("percentile"));
  }
}

TEST_CASE("int8/ the searched weight range never has a larger error than the extremes") {
  const at::Tensor w = weight(40, 128);
  for (const Scheme& scheme : schemes()) {
    const auto error = [&](const char* range) {
      SingleLayer layer(scheme, {w}, at::kFloat);
      const auto algorithm = int8({{"weight_range", range}});
      layer.observe(*algorithm, {at::randn({4, 128})});
      return (quant::decode(quantized(solve(*algorithm, layer))) - w).square().sum().item<double>();
    };
    CHECK(error("mse") <= error("minmax"));
  }
}

TEST_CASE("int8/ zero rows, one column, odd shapes: scales are positive and finite, zeros stay zero") {
  for (const auto& shape : std::vector<std::vector<int64_t>>{{1, 1}, {5, 1}, {1, 7}, {33, 131}}) {
    for (const char* name : {"w8a8", "w8a8_static", "w8a8_static_sym"}) {
      for (const auto dtype : {at::kBFloat16, at::kHalf}) {
        at::Tensor w = weight(shape[0], shape[1]);
        w[0].zero_();
        SingleLayer layer(scheme(name), {w.to(dtype)}, dtype);
        const auto algorithm = int8();
        layer.observe(*algorithm, {at::zeros({4, shape[1]})});
        const Solved solved = solve(*algorithm, layer);
        const at::Tensor scale = quantized(solved).scale.to(at::kFloat);
        CHECK((at::isfinite(scale) & (scale > 0)).all().item<bool>());
        CHECK((quantized(solved).codes[0] == 0).all().item<bool>());
        if (solved.input_scale.defined()) CHECK(solved.input_scale.item<double>() > 0);
      }
    }
  }
}

TEST_CASE("int8/ NaN and Inf are refused with the tensor's name; a missing calibration is named") {
  for (const double bad : {NAN, INFINITY}) {
    for (const Scheme& scheme : schemes()) {
      at::Tensor w = weight(8, 16);
      w[3][4] = bad;
      SingleLayer layer(scheme, {w});
      const auto algorithm = int8();
      layer.observe(*algorithm, {at::randn({4, 16})});
      const auto solved = algorithm->solve(layer);
      REQUIRE(!solved.ok());
      CHECK(solved.status().code() == Code::kNumeric);
      CHECK(solved.status().message().find("layer0.weight") != std::string::npos);
    }
  }
  SingleLayer layer(scheme("w8a8_static"), {weight(8, 16)});
  const auto algorithm = int8();
  layer.observe(*algorithm);
  CHECK(algorithm->solve(layer).status().message().find("--calib") != std::string::npos);
}

TEST_CASE("int8/ the same input gives the same bytes") {
  for (const Scheme& scheme : schemes()) {
    const auto run = [&] {
      SingleLayer layer(scheme, {weight(130, 256)});
      const auto algorithm = int8({{"activation_range", "histogram"}, {"weight_range", "mse"}});
      at::manual_seed(9);
      layer.observe(*algorithm, {at::randn({40, 256})});
      return solve(*algorithm, layer);
    };
    const Solved a = run(), b = run();
    CHECK(same(quantized(a).codes, quantized(b).codes));
    CHECK(same(quantized(a).scale, quantized(b).scale));
    CHECK((same(a.input_scale, b.input_scale) && same(a.input_zero, b.input_zero)));
  }
}

TEST_CASE("int8/ schemes of other kinds are refused") {
  const auto algorithm = int8();
  for (const Scheme& scheme : schemes()) CHECK(algorithm->accepts(scheme).ok());
  for (const char* name : {"fp8_static", "w4a16", "2:4"})
    CHECK(algorithm->accepts(scheme(name)).code() == Code::kUnsupported);
  CHECK(scheme_from_name(algorithm->default_scheme()).ok());
}
