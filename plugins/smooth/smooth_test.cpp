#include "batch_moments.h"
#include "single_layer.h"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::testing;
using slim::smooth::BatchMoments;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Algorithm> make(const Options& changes = {}) {
  return create(slim_plugin_v1, {{"method", "smoothquant"}, {"alpha", "0"}, {"edges", "auto"}}, changes);
}

/// norm -> layer 0 (producer: v, up) and layer 1; layer 0 -> layer 2, whose input is what layer 0 gives.
class Block final : public BlockContext {
 public:
  Block(std::vector<at::Tensor> batches, std::vector<at::Tensor> weights, int64_t repeat = 1)
      : batches_(std::move(batches)),
        weights_(std::move(weights)),
        int8_(testing::scheme("w8a8")),
        schemes_(weights_.size(), &int8_) {
    plan_ = block_of(weights_);
    ScaleEdge norm;
    norm.name = "norm -> linears";
    norm.consumers = {0, 1};
    plan_.edges = {norm};
    if (weights_.size() < 3) return;
    plan_.ports.push_back({1, "inner", weights_[2].size(1)});
    plan_.layers[2].input = 1;
    ScaleEdge linear;
    linear.name = "layer0 -> layer2";
    linear.port = 1;
    linear.fold = Fold::kLinearRows;
    linear.producers = {0};
    linear.consumers = {2};
    linear.repeat = repeat;
    linear.head_dim = weights_[0].size(0) / 2;
    plan_.edges.push_back(linear);
  }

  void collect(const Algorithm& algorithm) {
    algorithm.observe(plan_, schemes_, requests);
    for (const at::Tensor& x : batches_) {
      for (auto& [key, statistic] : requests.made) statistic->update(key.first == 0 ? x : inner(x));
    }
  }
  at::Tensor inner(const at::Tensor& x) const {
    const at::Tensor y = at::matmul(x, weights_[0].t());
    return plan_.edges[1].repeat == 1 ? y
                                      : y.view({-1, 2, 1, y.size(1) / 2})
                                            .expand({-1, 2, plan_.edges[1].repeat, -1})
                                            .reshape({y.size(0), -1});
  }
  at::Tensor columns(const ScaleEdge& edge, const at::Tensor& s) const {
    return edge.repeat == 1 ? s : s.view({-1, 1, edge.head_dim}).expand({-1, edge.repeat, -1}).reshape({-1});
  }

  const BlockPlan& plan() const override { return plan_; }
  const Scheme* scheme(LayerId id) const override { return schemes_[static_cast<size_t>(id)]; }
  at::Tensor weight(LayerId id) const override { return weights_[static_cast<size_t>(id)].clone(); }
  at::Tensor norm_weight(const ScaleEdge&) const override { return at::ones({plan_.ports[0].features}); }
  at::ScalarType scale_dtype() const override { return at::kBFloat16; }
  const Statistic* find(PortId port, std::string_view id) const override { return requests.find(port, id); }
  Result<double> loss(RegionId, const Overrides&) override { return Status(Code::kInternal, "not expected"); }
  Result<at::Tensor> fold(const ScaleEdge& edge, const at::Tensor& s) override {
    const at::Tensor wide = columns(edge, s);
    for (const LayerId id : edge.consumers) weights_[id] = weights_[id] * wide;
    for (const LayerId id : edge.producers) weights_[id] = weights_[id] / s.unsqueeze(1);
    if (edge.producers.empty()) {
      for (at::Tensor& x : batches_) x = x / wide;
    }
    for (auto& [key, statistic] : requests.made) {
      if (key.first == edge.port) CHECK(statistic->rescale(wide));
    }
    folded.emplace_back(edge.name, s);
    return s;
  }
  Status set_weight(LayerId, const at::Tensor&) override { return {Code::kInternal, "not expected"}; }
  Notes& notes() override { return recorded; }

  at::Tensor output() const { return at::matmul(inner(batches_[0]), weights_[2].t()); }

  std::vector<at::Tensor> batches_, weights_;
  BlockPlan plan_;
  Requests requests;
  RecordedNotes recorded;
  std::vector<std::pair<std::string, at::Tensor>> folded;
  const Scheme int8_;
  std::vector<const Scheme*> schemes_;
};

at::Tensor normal(int64_t rows, int64_t columns) { return at::randn({rows, columns}); }

at::Tensor with_outliers(int64_t tokens, int64_t features) {
  at::Tensor x = normal(tokens, features);
  for (int64_t channel = 3; channel < features; channel += 17) x.select(1, channel).mul_(40).add_(15);
  return x;
}

Block language_like(uint64_t seed = 1) {
  at::manual_seed(seed);
  std::vector<at::Tensor> batches{with_outliers(60, 32), with_outliers(30, 32)};
  const at::Tensor first = normal(8, 32), second = normal(5, 32), third = normal(6, 8);
  return Block(batches, {first, second, third});
}

at::Tensor largest(const std::vector<at::Tensor>& batches) { return at::cat(batches).abs().amax(0); }

at::Tensor largest_weight(const at::Tensor& a, const at::Tensor& b) {
  return at::maximum(a.abs().amax(0), b.abs().amax(0));
}

}  // namespace

TEST_CASE("smooth/ smoothquant folds A^alpha / Wm^(1 - alpha) into norms") {
  for (const char* alpha : {"0", "0.3", "0.8"}) {
    Block block = language_like();
    const at::Tensor a = largest(block.batches_), w = largest_weight(block.weights_[0], block.weights_[1]);
    const double exponent = std::string(alpha) == "0" ? 0.5 : std::stod(alpha);
    const auto algorithm = make({{"alpha", alpha}});
    block.collect(*algorithm);
    REQUIRE(algorithm->transform(block).ok());
    REQUIRE(block.folded.size() == 1);
    CHECK(at::allclose(block.folded[0].second, a.pow(exponent) / w.pow(1 - exponent), 1e-5, 1e-7));
  }
}

TEST_CASE("smooth/ alpha one half makes activations and weights equally large in every channel") {
  Block block = language_like();
  const auto algorithm = make();
  block.collect(*algorithm);
  REQUIRE(algorithm->transform(block).ok());
  CHECK(at::allclose(largest(block.batches_), largest_weight(block.weights_[0], block.weights_[1]), 1e-4));
}

TEST_CASE("smooth/ int8 activations lose less after smoothing") {
  for (const char* method : {"smoothquant", "m2", "iterative"}) {
    Block block = language_like();
    const Scheme scheme = testing::scheme("w8a8_static");
    const auto error = [&] {
      const at::Tensor x = at::cat(block.batches_), w = block.weights_[1];
      const quant::Params input =
          quant::params_from_range(x.min().view({1}), x.max().view({1}), *scheme.input, at::kFloat);
      const at::Tensor y =
          at::matmul(quant::fake_quantize_activation(x, *scheme.input, input.scale, input.zero),
                     (*quant::fake_quantize(w, *scheme.weight, at::kFloat)).t());
      return (y - at::matmul(x, w.t())).square().mean().item<double>();
    };
    const double before = error();
    const auto algorithm = make({{"method", method}});
    block.collect(*algorithm);
    REQUIRE(algorithm->transform(block).ok());
    CHECK_MESSAGE(error() < 0.6 * before, method);
  }
}

TEST_CASE("smooth/ m2 scales channels that reach beyond one deviation, by the root of reach over weight") {
  Block block = language_like();
  const at::Tensor all = at::cat(block.batches_), w = largest_weight(block.weights_[0], block.weights_[1]);
  const at::Tensor low = std::get<0>(all.min(0)), high = std::get<0>(all.max(0)), shift = (low + high) / 2;
  double deviation = 0;
  for (const at::Tensor& x : block.batches_)
    deviation = std::max(deviation, (x - shift).std(true).item<double>());
  const at::Tensor reach = std::get<0>((all - shift).max(0));
  const at::Tensor expected = at::where(reach > deviation, (reach / w).sqrt(), at::ones_like(reach));
  const auto algorithm = make({{"method", "m2"}});
  block.collect(*algorithm);
  REQUIRE(algorithm->transform(block).ok());
  REQUIRE(block.folded.size() == 1);
  CHECK(at::allclose(block.folded[0].second, expected, 1e-5, 1e-6));
  CHECK((expected == 1).any().item<bool>());
  CHECK((expected != 1).any().item<bool>());
}

TEST_CASE("smooth/ m2 leaves inputs without a value beyond seven deviations alone, and that is noted") {
  at::manual_seed(1);
  Block block({normal(60, 32)}, {normal(8, 32), normal(5, 32)});
  const auto algorithm = make({{"method", "m2"}});
  block.collect(*algorithm);
  REQUIRE(algorithm->transform(block).ok());
  CHECK(block.folded.empty());
  CHECK(block.recorded.kinds == std::vector<std::string>{"not smoothed"});
}

TEST_CASE(
    "smooth/ iterative smoothing takes linear pairs before norms, each with what the ones before have left") {
  Block block = language_like();
  const at::Tensor inner = block.inner(at::cat(block.batches_)).abs().amax(0),
                   w2 = block.weights_[2].abs().amax(0);
  const at::Tensor a = largest(block.batches_), before = block.output();
  const at::Tensor s2 = inner.pow(0.9) / w2.pow(0.1), w0 = block.weights_[0] / s2.unsqueeze(1);
  const at::Tensor s0 = a.pow(0.9) / largest_weight(w0, block.weights_[1]).pow(0.1);
  const auto algorithm = make({{"method", "iterative"}});
  block.collect(*algorithm);
  REQUIRE(algorithm->transform(block).ok());
  REQUIRE(block.folded.size() == 2);
  CHECK(block.folded[0].first == "layer0 -> layer2");
  CHECK(at::allclose(block.folded[0].second, s2, 1e-4));
  CHECK(at::allclose(block.folded[1].second, s0, 1e-4));
  CHECK(at::allclose(block.output(), before, 1e-4, 1e-2));
}

TEST_CASE("smooth/ heads that share keys and values share the largest scale") {
  at::manual_seed(5);
  Block block({normal(40, 16)}, {normal(8, 16), normal(5, 16), normal(6, 24)}, /*repeat=*/3);
  const at::Tensor inner = block.inner(block.batches_[0]).abs().amax(0), w = block.weights_[2].abs().amax(0);
  const auto algorithm = make({{"edges", "all"}});
  block.collect(*algorithm);
  REQUIRE(algorithm->transform(block).ok());
  REQUIRE(block.folded.size() == 2);
  const auto heads = [](const at::Tensor& x) { return x.view({2, 3, 4}).amax(1).reshape({-1}); };
  CHECK(at::allclose(block.folded[0].second, (heads(inner) / heads(w)).sqrt(), 1e-4));
}

TEST_CASE("smooth/ edges decides where scales go; auto is all for iterative and norms for the others") {
  const std::map<std::string, size_t> automatic{{"smoothquant", 1}, {"m2", 1}, {"iterative", 2}};
  for (const auto& [method, count] : automatic) {
    for (const char* edges : {"auto", "norms", "all"}) {
      Block block = language_like();
      const auto algorithm = make({{"method", method}, {"edges", edges}});
      block.collect(*algorithm);
      const size_t wanted = std::string(edges) == "auto" ? count : std::string(edges) == "all" ? 2 : 1;
      CHECK(block.requests.made.size() == wanted);
      REQUIRE(algorithm->transform(block).ok());
      CHECK(block.folded.size() + block.recorded.kinds.size() == wanted);
    }
  }
}

TEST_CASE("smooth/ layers in float have no say, and an edge of such layers is left alone") {
  Block block = language_like();
  block.schemes_[1] = nullptr;
  const at::Tensor a = largest(block.batches_), w = block.weights_[0].abs().amax(0);
  const auto algorithm = make();
  block.collect(*algorithm);
  REQUIRE(algorithm->transform(block).ok());
  CHECK(at::allclose(block.folded[0].second, (a / w).sqrt(), 1e-5));
  Block untouched = language_like();
  untouched.schemes_ = {nullptr, nullptr, nullptr};
  untouched.collect(*algorithm);
  CHECK(untouched.requests.made.empty());
  REQUIRE(algorithm->transform(untouched).ok());
  CHECK(untouched.folded.empty());
}

TEST_CASE("smooth/ dead channels keep their scale, all scales are positive and finite") {
  for (const char* method : {"smoothquant", "m2", "iterative"}) {
    Block block = language_like();
    for (at::Tensor& x : block.batches_) x.select(1, 4).zero_();
    block.weights_[0].select(1, 6).zero_();
    block.weights_[1].select(1, 6).zero_();
    const auto algorithm = make({{"method", method}, {"edges", "norms"}});
    block.collect(*algorithm);
    REQUIRE(algorithm->transform(block).ok());
    const at::Tensor& s = block.folded[0].second;
    CHECK((s[4].item<float>() == 1 && s[6].item<float>() == 1));
    CHECK((at::isfinite(s) & (s > 0)).all().item<bool>());
  }
}

TEST_CASE("smooth/ nothing seen is noted; NaN and Inf are refused") {
  for (const char* method : {"smoothquant", "m2", "iterative"}) {
    Block unseen({}, {normal(8, 16), normal(5, 16)});
    const auto algorithm = make({{"method", method}});
    unseen.collect(*algorithm);
    REQUIRE(algorithm->transform(unseen).ok());
    CHECK((unseen.folded.empty() && unseen.recorded.kinds == std::vector<std::string>{"not smoothed"}));
    for (const double bad : {NAN, INFINITY}) {
      Block block({at::full({3, 16}, bad)}, {normal(8, 16), normal(5, 16)});
      block.collect(*algorithm);
      CHECK(algorithm->transform(block).code() == Code::kNumeric);
    }
  }
}

TEST_CASE("smooth/ it solves nothing, refuses float activations, and m2 has no alpha") {
  const auto algorithm = make();
  CHECK(!algorithm->solves());
  for (const char* name : {"w8a8", "w8a8_static", "fp8_static", "fp8_dynamic"})
    CHECK(algorithm->accepts(testing::scheme(name)).ok());
  for (const char* name : {"w4a16", "fp8_a16", "2:4"})
    CHECK(algorithm->accepts(testing::scheme(name)).code() == Code::kUnsupported);
  CHECK(create(slim_plugin_v1)->setup({{"method", "m2"}, {"alpha", "0.4"}, {"edges", "auto"}}).code() ==
        Code::kInvalidArgument);
}

TEST_CASE("smooth/ batch moments merge, follow scales, and go on in another process") {
  at::manual_seed(8);
  const at::Tensor a = with_outliers(20, 9), b = normal(5, 9), s = at::rand({9}) + 0.5;
  BatchMoments both(9), first(9), second(9), scaled(9), restored(9);
  for (const at::Tensor& x : {a, b}) {
    both.update(x);
    scaled.update(x / s);
  }
  both.update(at::zeros({0, 9}));
  first.update(a);
  second.update(b);
  first.merge(second, 1);
  CHECK((at::equal(first.reach(), both.reach()) && first.spread() == both.spread() && first.tokens == 25));
  REQUIRE(restored.restore(both.state()).ok());
  CHECK((at::equal(restored.reach(), both.reach()) && restored.spread() == both.spread() &&
         restored.tokens == 25));
  const auto copy = both.clone();
  CHECK(both.rescale(s));
  CHECK(at::allclose(both.reach(), scaled.reach(), 1e-5));
  CHECK(both.spread() == doctest::Approx(scaled.spread()).epsilon(1e-5));
  CHECK(static_cast<const BatchMoments&>(*copy).spread() == restored.spread());
  TensorMap damaged = restored.state();
  damaged.erase("max");
  CHECK(restored.restore(damaged).message().find("max") != std::string::npos);
}
