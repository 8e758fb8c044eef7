#include <limits>

#include "clip.h"
#include "scale_search.h"
#include "single_layer.h"

using namespace slim;
using namespace slim::testing;
using namespace slim::awq;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

/// One norm (or linear) that feeds linears directly: the region's output is what the linears give.
class Block final : public BlockContext {
 public:
  Block(const Scheme& scheme, at::Tensor x, std::vector<at::Tensor> weights, int64_t repeat = 1,
        int64_t head_dim = 0)
      : scheme_(scheme), x_(std::move(x)), weights_(std::move(weights)) {
    plan_ = block_of(weights_);
    requests.tokens = x_.size(0);
    ScaleEdge edge;
    edge.name = "norm -> linears";
    edge.region = 0;
    edge.repeat = repeat;
    edge.head_dim = head_dim;
    if (repeat > 1) edge.fold = Fold::kLinearRows;
    for (const Layer& layer : plan_.layers) edge.consumers.push_back(layer.id);
    plan_.edges = {edge};
  }

  void collect(const Algorithm& algorithm, bool feed = true) {
    algorithm.observe(plan_, std::vector<const Scheme*>(weights_.size(), &scheme_), requests);
    if (feed) requests.update(x_);
  }

  const BlockPlan& plan() const override { return plan_; }
  const Scheme* scheme(LayerId) const override { return &scheme_; }
  at::Tensor weight(LayerId id) const override { return weights_[static_cast<size_t>(id)].clone(); }
  at::Tensor norm_weight(const ScaleEdge&) const override { return at::ones({x_.size(1)}); }
  at::ScalarType scale_dtype() const override { return at::kBFloat16; }
  const Statistic* find(PortId port, std::string_view id) const override { return requests.find(port, id); }
  Result<double> loss(RegionId, const Overrides& overrides) override {
    ++replays;
    double squared = 0, count = 0;
    for (const auto& [id, weight] : overrides) {
      const at::Tensor error = at::matmul(x_, (weight - weights_[static_cast<size_t>(id)]).t());
      squared += error.square().sum().item<double>();
      count += static_cast<double>(error.numel());
    }
    return squared / count;
  }
  Result<at::Tensor> fold(const ScaleEdge& edge, const at::Tensor& s) override {
    folded = s;
    const at::Tensor columns =
        edge.repeat == 1 ? s : s.view({-1, 1, edge.head_dim}).expand({-1, edge.repeat, -1}).reshape({-1});
    for (at::Tensor& weight : weights_) weight = weight * columns;
    x_ = x_ / columns;
    for (auto& [key, statistic] : requests.made) CHECK(statistic->rescale(columns));
    return s;
  }
  Status set_weight(LayerId, const at::Tensor&) override { return {Code::kInternal, "not expected"}; }
  Notes& notes() override { return notes_; }

  double metric(const char* key) { return notes_.metrics[key]; }
  const at::Tensor& x() const { return x_; }

  const Scheme scheme_;
  BlockPlan plan_;
  at::Tensor x_;
  std::vector<at::Tensor> weights_;
  RecordedNotes notes_;
  Requests requests;
  at::Tensor folded;
  int replays = 0;
};

class OneLayer final : public LayerContext {
 public:
  OneLayer(Block& block, LayerId id) : block_(block), id_(id) {}
  const Layer& layer() const override { return block_.plan_.layers[static_cast<size_t>(id_)]; }
  const Scheme& scheme() const override { return block_.scheme_; }
  at::Tensor weight() const override { return block_.weight(id_); }
  at::Tensor bias() const override { return {}; }
  at::ScalarType scale_dtype() const override { return at::kBFloat16; }
  const Statistic* find(std::string_view id) const override { return block_.find(0, id); }
  double fused_abs_max() const override {
    return block_.weights_[static_cast<size_t>(id_)].abs().max().item<double>();
  }
  TensorMap& port_cache() override { return cache_; }
  uint64_t seed() const override { return 0; }
  Notes& notes() override { return block_.notes_; }

 private:
  Block& block_;
  LayerId id_;
  TensorMap cache_;
};

std::unique_ptr<Algorithm> make_awq(const Options& changes = {}) {
  return create(slim_plugin_v1,
                {{"grid", "20"},
                 {"refine", "24"},
                 {"weight_term", "both"},
                 {"objective", "gram"},
                 {"rows", "512"},
                 {"search_range", "minmax"},
                 {"clip", "gram"},
                 {"exponents", "edge"},
                 {"edges", "all"}},
                changes);
}

Scheme integers(int bits, bool symmetric, int64_t group = 16) {
  Scheme scheme;
  scheme.name = "test";
  scheme.weight = QuantArgs{};
  scheme.weight->bits = bits;
  scheme.weight->symmetric = symmetric;
  scheme.weight->group_size = group;
  return scheme;
}

at::Tensor normal(std::vector<int64_t> shape) { return at::randn(shape); }

/// Activations of which a few channels are much larger than the rest, as in language models.
at::Tensor with_outliers(int64_t tokens, int64_t features) {
  at::Tensor x = normal({tokens, features});
  for (int64_t channel = 3; channel < features; channel += 17) x.select(1, channel).mul_(20);
  return x;
}

Block language_like(const Scheme& scheme, int64_t tokens = 200) {
  at::manual_seed(7);
  const at::Tensor x = with_outliers(tokens, 64);
  return Block(scheme, x, {normal({40, 64}), normal({24, 64})});
}

double output_error(const Block& block, LayerId id, const Solved& solved) {
  const at::Tensor delta = quant::decode(std::get<Quantized>(solved.weight)) - block.weight(id);
  return at::matmul(block.x(), delta.t()).square().mean().item<double>();
}

}  // namespace

TEST_CASE("awq/ a scale is never worse than none on its own loss, for any scheme and any data") {
  for (int seed = 0; seed < 6; ++seed) {
    at::manual_seed(seed);
    Block block(integers(2 + seed, seed % 2 == 0), normal({100, 32}), {normal({8, 32}), normal({12, 32})});
    const auto awq = make_awq({{"rows", seed % 2 ? "3" : "512"}, {"grid", "5"}});
    block.collect(*awq);
    REQUIRE(awq->transform(block).ok());
    CHECK(block.metric("awq loss after") <= block.metric("awq loss before"));
    CHECK(block.folded.defined() == (block.metric("awq loss after") < block.metric("awq loss before")));
  }
}

TEST_CASE("awq/ outlier channels make scaling pay, and the scale protects them") {
  Block block = language_like(integers(4, true));
  const auto awq = make_awq();
  block.collect(*awq);
  REQUIRE(awq->transform(block).ok());
  CHECK(block.metric("awq loss after") < 0.6 * block.metric("awq loss before"));
  REQUIRE(block.folded.defined());
  CHECK(block.folded[3].item<float>() > block.folded[4].item<float>());
}

TEST_CASE("awq/ the loss that is reported is the error of the layers' outputs") {
  Block block = language_like(integers(4, false));
  const auto awq = make_awq();
  block.collect(*awq);
  REQUIRE(awq->transform(block).ok());
  double error = 0;
  for (LayerId id = 0; id < 2; ++id) {
    const at::Tensor w = block.weight(id);  // already scaled, as are the activations
    const at::Tensor delta = *quant::fake_quantize(w, *block.scheme_.weight, at::kBFloat16) - w;
    error += at::matmul(block.x(), delta.t()).square().mean().item<double>();
  }
  CHECK(block.metric("awq loss after") == doctest::Approx(error).epsilon(1e-3));
}

TEST_CASE("awq/ Gram matrix and activations give the same search") {
  Block few = language_like(integers(4, true), 63), many = language_like(integers(4, true), 63);
  many.requests.tokens = 1000;  // asks for a Gram matrix
  const auto awq = make_awq({{"refine", "0"}});
  few.collect(*awq);
  many.collect(*awq);
  CHECK(few.find(0, ActivationRows::kId) != nullptr);
  CHECK(many.find(0, Gram::kId) != nullptr);
  REQUIRE(awq->transform(few).ok());
  REQUIRE(awq->transform(many).ok());
  CHECK(few.metric("awq activation exponent") == many.metric("awq activation exponent"));
  CHECK(few.metric("awq loss after") == doctest::Approx(many.metric("awq loss after")).epsilon(1e-4));
}

TEST_CASE("awq/ the replay objective runs the region and agrees when the region is the layers") {
  Block block = language_like(integers(4, true));
  block.weights_[1] = block.weights_[0].flip(0);
  block.plan_.layers[1].out = 40;
  Block same = language_like(integers(4, true));
  same.weights_ = block.weights_;
  same.plan_ = block.plan_;
  const auto replay = make_awq({{"objective", "replay"}, {"refine", "0"}}),
             gram = make_awq({{"refine", "0"}});
  block.collect(*replay);
  same.collect(*gram);
  CHECK(block.requests.regions.contains(0));
  CHECK(same.requests.regions.empty());
  REQUIRE(replay->transform(block).ok());
  REQUIRE(gram->transform(same).ok());
  CHECK(block.replays > 20);
  CHECK(same.replays == 0);
  CHECK(block.metric("awq activation exponent") == same.metric("awq activation exponent"));
}

TEST_CASE("awq/ groups with exponents of their own are never worse, and better where groups differ") {
  at::manual_seed(8);
  // Weights of the second half are small where inputs are large: full scaling levels both there, and is too much for the first half.
  const at::Tensor size = at::randn({64}).exp();
  const at::Tensor x = normal({300, 64}) * size;
  std::vector<at::Tensor> weights{normal({40, 64}), normal({24, 64})};
  for (at::Tensor& weight : weights) weight.narrow(1, 32, 32).div_(size.narrow(0, 32, 32));
  std::map<std::string, double> loss;
  for (const char* exponents : {"edge", "group"}) {
    Block block(integers(3, true), x, weights);
    const auto awq = make_awq({{"exponents", exponents}, {"weight_term", "off"}});
    block.collect(*awq);
    REQUIRE(awq->transform(block).ok());
    loss[exponents] = block.metric("awq loss after");
    CHECK(block.folded.min().item<float>() > 0);
  }
  CHECK(loss["group"] < loss["edge"]);
}

TEST_CASE("awq/ heads that share keys and values share their scale") {
  at::manual_seed(3);
  const int64_t head_dim = 8, repeat = 4;
  Block block(integers(4, true, 8), with_outliers(150, 64), {normal({20, 64})}, repeat, head_dim);
  const auto awq = make_awq();
  block.collect(*awq);
  REQUIRE(awq->transform(block).ok());
  REQUIRE(block.folded.defined());
  CHECK(block.folded.numel() == 64 / repeat);
  CHECK(block.metric("awq loss after") < block.metric("awq loss before"));
}

TEST_CASE("awq/ edges into linears can be left out") {
  at::manual_seed(3);
  Block block(integers(4, true, 8), with_outliers(150, 64), {normal({20, 64})}, 4, 8);
  const auto awq = make_awq({{"edges", "norms"}});
  block.collect(*awq);
  REQUIRE(awq->transform(block).ok());
  CHECK(!block.folded.defined());
}

TEST_CASE("awq/ refinement and more grid points never make the ranking worse when all rows rank") {
  double last = 1e30;
  for (const char* refine : {"0", "8", "60"}) {
    Block block = language_like(integers(3, true));
    const auto awq = make_awq({{"refine", refine}});
    block.collect(*awq);
    REQUIRE(awq->transform(block).ok());
    CHECK(block.metric("awq loss after") <= last);
    last = block.metric("awq loss after");
  }
}

TEST_CASE("awq/ scaling and clipping each lower the output error of rounding") {
  for (const bool symmetric : {true, false}) {
    Block plain = language_like(integers(3, symmetric)), scaled = language_like(integers(3, symmetric));
    const auto clipped_only = make_awq(), awq = make_awq(), none = make_awq({{"clip", "none"}}),
               diagonal = make_awq({{"clip", "diagonal"}});
    plain.collect(*awq);
    scaled.collect(*awq);
    REQUIRE(awq->transform(scaled).ok());
    const auto error = [&](Algorithm& algorithm, Block& block) {
      double sum = 0;
      for (LayerId id = 0; id < 2; ++id) {
        OneLayer layer(block, id);
        const auto solved = algorithm.solve(layer);
        REQUIRE(solved.ok());
        sum += output_error(block, id, *solved);
      }
      return sum;
    };
    CHECK(error(*diagonal, plain) < error(*none, plain));
    CHECK(error(*clipped_only, plain) < error(*diagonal, plain));
    CHECK(error(*awq, scaled) < error(*none, scaled));
    CHECK(error(*awq, scaled) < error(*clipped_only, plain));
  }
}

TEST_CASE("awq/ searched ranges never have a larger group error than the extremes") {
  at::manual_seed(4);
  const QuantArgs args = *integers(3, false).weight;
  const at::Tensor w = normal({300, 64}), x = with_outliers(90, 64);
  Gram gram(64);
  gram.update(x);
  const auto error = OutputError::from(&gram, nullptr);
  const auto group_error = [&](const quant::Params& params) {
    const at::Tensor delta = (quant::fake_quantize(w, params, args) - w).view({300, 4, 16}).transpose(0, 1);
    return at::bmm(delta, error->diagonal_blocks(16)).mul(delta).sum(-1);
  };
  const at::Tensor found = group_error(search_group_ranges(w, args, at::kBFloat16, *error));
  CHECK((found <= group_error(*quant::choose_params(w, args, at::kBFloat16)) + 1e-5).all().item<bool>());
}

TEST_CASE(
    "awq/ ranges found beside the errors of other groups have a smaller output error where groups depend") {
  at::manual_seed(5);
  const at::Tensor w = normal({300, 96}), x = correlated(400, 96);
  Gram gram(96);
  gram.update(x);
  ActivationRows rows(96, 1000);
  rows.update(x);
  for (const bool symmetric : {true, false}) {
    const QuantArgs args = *integers(3, symmetric, 32).weight;
    const auto error = OutputError::from(&gram, nullptr);
    const auto output_error = [&](const quant::Params& params) {
      return (*error)(quant::fake_quantize(w, params, args) - w);
    };
    const quant::Params joint = search_joint_ranges(w, args, at::kBFloat16, *error);
    const quant::Params alone = search_group_ranges(w, args, at::kBFloat16, *error);
    CHECK(output_error(joint) < 0.98 * output_error(alone));
    CHECK((joint.scale > 0).all().item<bool>());
    CHECK(at::equal(joint.scale, search_joint_ranges(w, args, at::kBFloat16, *error).scale));
    const quant::Params of_rows =
        search_joint_ranges(w, args, at::kBFloat16, *OutputError::from(nullptr, &rows));
    CHECK(output_error(of_rows) == doctest::Approx(output_error(joint)).epsilon(0.01));
  }
}

TEST_CASE("awq/ output errors from a Gram matrix and from activations are equal") {
  at::manual_seed(5);
  const at::Tensor x = with_outliers(30, 16), delta = normal({7, 16});
  Gram gram(16);
  ActivationRows rows(16, 100);
  gram.update(x);
  rows.update(x);
  const auto a = OutputError::from(&gram, nullptr), b = OutputError::from(nullptr, &rows);
  CHECK((*a)(delta) == doctest::Approx(at::matmul(x, delta.t()).square().sum().item<double>() / 30));
  CHECK((*a)(delta) == doctest::Approx((*b)(delta)));
  CHECK(at::allclose(a->mean_square(), b->mean_square(), 1e-4));
  CHECK(at::allclose(a->diagonal_blocks(8), b->diagonal_blocks(8), 1e-4, 1e-3));
}

TEST_CASE("awq/ layers that no token reached are rounded, and that is noted") {
  Block block = language_like(integers(4, false));
  const auto awq = make_awq();
  block.collect(*awq, /*feed=*/false);
  REQUIRE(awq->transform(block).ok());
  OneLayer layer(block, 0);
  CHECK(awq->solve(layer).ok());
  CHECK((block.notes_.kinds == std::vector<std::string>{"no awq scale", "rounding instead of awq"}));
  CHECK(!block.folded.defined());
}

TEST_CASE("awq/ channels that calibration never excited keep a finite scale") {
  at::manual_seed(6);
  at::Tensor x = with_outliers(100, 32);
  x.select(1, 5).zero_();
  Block block(integers(4, true), x, {normal({16, 32})});
  const auto awq = make_awq();
  block.collect(*awq);
  REQUIRE(awq->transform(block).ok());
  REQUIRE(block.folded.defined());
  CHECK(at::isfinite(block.folded).all().item<bool>());
  CHECK(block.folded.min().item<float>() > 0);
}

TEST_CASE("awq/ a scheme that leaves weights in float, or prunes, is refused") {
  const auto awq = make_awq();
  CHECK(awq->accepts(integers(4, true)).ok());
  CHECK(awq->accepts(Scheme{"a8", {}, QuantArgs{}, {}}).code() == Code::kUnsupported);
  Scheme pruned = integers(4, true);
  pruned.sparsity = Sparsity{};
  CHECK(awq->accepts(pruned).code() == Code::kUnsupported);
}

TEST_CASE(
    "awq/ zero rows, one column, bf16 and fp16 inputs: scales are positive and finite, and the same bits "
    "come twice") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t in : {1, 48}) {
      at::manual_seed(9);
      Scheme scheme = integers(4, in == 1);
      if (in == 1) scheme.weight->granularity = Granularity::kChannel;
      at::Tensor weight = normal({5, in});
      weight[2].zero_();
      std::vector<Quantized> results;
      for (int repeat = 0; repeat < 2; ++repeat) {
        at::manual_seed(10);
        Block block(scheme, normal({100, in}).to(dtype), {weight.to(dtype).to(at::kFloat)});
        const auto awq = make_awq({{"exponents", "group"}});
        block.collect(*awq);
        REQUIRE(awq->transform(block).ok());
        OneLayer layer(block, 0);
        const auto solved = awq->solve(layer);
        REQUIRE_MESSAGE(solved.ok(), solved.status().message());
        results.push_back(std::get<Quantized>(solved->weight));
      }
      CHECK((results[0].scale > 0).logical_and(at::isfinite(results[0].scale)).all().item<bool>());
      CHECK((quant::decode(results[0])[2] == 0).all().item<bool>());
      CHECK(at::equal(results[0].codes, results[1].codes));
      CHECK(at::equal(results[0].scale, results[1].scale));
    }
  }
}

TEST_CASE("awq/ NaN and Inf in a weight or in activations are errors that name them") {
  for (const double value :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const auto awq = make_awq();
    Block weights = language_like(integers(4, true)), inputs = language_like(integers(4, true));
    weights.weights_[0][3][5] = value;
    weights.collect(*awq);
    OneLayer layer(weights, 0);
    const auto solved = awq->solve(layer);
    CHECK(solved.status().code() == Code::kNumeric);
    CHECK(solved.status().message().find("layer0") != std::string::npos);
    inputs.x_[7][9] = value;
    inputs.collect(*awq);
    const Status status = awq->transform(inputs);
    CHECK(status.code() == Code::kNumeric);
    CHECK(status.message().find("norm -> linears") != std::string::npos);
  }
}
