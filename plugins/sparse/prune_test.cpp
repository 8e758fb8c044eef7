#include "prune.h"

#include "single_layer.h"
#include "slim/ops.hpp"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::testing;
using namespace slim::sparse;

namespace {

using Method = PruneOptions::Method;

at::Tensor decoded(const Solved& solved) {
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  return quantized ? quant::decode(*quantized) : std::get<Dense>(solved.weight).weight;
}

at::Tensor prune(CalibratedLayer& layer, Method method) {
  PruneOptions options;
  options.method = method;
  const auto solved = solve_pruning(options, layer);
  REQUIRE_MESSAGE(solved.ok(), solved.status().message());
  return decoded(*solved);
}

/// Weights that stay in each run of `of` inputs.
at::Tensor kept(const at::Tensor& weight, int64_t of) {
  const int64_t runs = (weight.size(1) + of - 1) / of;
  return at::constant_pad_nd(weight, {0, runs * of - weight.size(1)}, 0)
      .view({weight.size(0), runs, of})
      .ne(0)
      .sum(-1);
}

}  // namespace

TEST_CASE("sparse pruning/ every m consecutive inputs keep exactly n weights, a shorter last run at most n") {
  at::manual_seed(1);
  for (const Method method : {Method::kSparseGpt, Method::kWanda, Method::kMagnitude}) {
    for (const auto& one_case : {std::tuple<const char*, int64_t, int64_t>{"2:4", 2, 4},
                                 {"1:3", 1, 3},
                                 {"4:8", 4, 8},
                                 {"30:64", 30, 64}}) {
      const auto& name = std::get<0>(one_case);
      const auto& keep = std::get<1>(one_case);
      const auto& of = std::get<2>(one_case);
      for (const int64_t in : {1, 7, 64, 200, 258}) {
        CalibratedLayer layer(scheme(name), correlated(2 * in + 9, in), at::randn({5, in}));
        const at::Tensor weight = prune(layer, method);
        const at::Tensor counts = kept(weight, of);
        const int64_t whole = in / of, rest = in % of;
        INFO(name, ", ", in, " inputs");
        CHECK(counts.narrow(1, 0, whole).eq(keep).all().item<bool>());
        if (rest > 0) CHECK(counts.select(1, whole).eq(std::min(keep, rest)).all().item<bool>());
        CHECK(at::isfinite(weight).all().item<bool>());
      }
    }
  }
}

TEST_CASE(
    "sparse pruning/ on dependent channels SparseGPT loses less than Wanda, and Wanda less than magnitude") {
  at::manual_seed(2);
  double gpt = 0, wanda = 0, magnitude = 0;
  for (int problem = 0; problem < 8; ++problem) {
    const at::Tensor x = correlated(400, 96), weight = at::randn({24, 96});
    CalibratedLayer layer(scheme("2:4"), x, weight);
    const double scale = layer.loss(at::zeros_like(weight));
    gpt += layer.loss(prune(layer, Method::kSparseGpt)) / scale;
    wanda += layer.loss(prune(layer, Method::kWanda)) / scale;
    magnitude += layer.loss(prune(layer, Method::kMagnitude)) / scale;
  }
  CHECK(gpt < 0.8 * wanda);
  CHECK(wanda < magnitude);
}

TEST_CASE("sparse pruning/ on independent channels every run loses the least that any choice can") {
  at::manual_seed(3);
  // Rows of a diagonal matrix: E[x xᵀ] is exactly diagonal.
  const at::Tensor x = at::diag(at::randn({12}).exp()), weight = at::randn({6, 12});
  for (const Method method : {Method::kSparseGpt, Method::kWanda}) {
    CalibratedLayer layer(scheme("2:4"), x, weight);
    const at::Tensor pruned = prune(layer, method);
    const at::Tensor cost = weight.square() * x.diagonal().square();
    const at::Tensor lost = at::where(pruned == 0, cost, at::zeros_like(cost)).view({6, 3, 4}).sum(-1);
    const at::Tensor least = std::get<0>(at::sort(cost.view({6, 3, 4}), -1)).narrow(-1, 0, 2).sum(-1);
    CHECK(at::allclose(lost, least));
    CHECK(at::allclose(at::where(pruned == 0, weight, pruned), weight, 1e-5, 1e-6));
  }
}

TEST_CASE(
    "sparse pruning/ quantization in the same sweep keeps the pattern and loses less than rounding what "
    "pruning left") {
  at::manual_seed(4);
  for (const auto& one_case : {std::pair<const char*, int64_t>{"2:4+w4a16", 32},
                               {"2:4+w4a16_asym", 32},
                               {"2:4+w4a16", -1},
                               {"4:8+w8a16", 64},
                               {"2:4+w8a8", 0},
                               {"2:4+w3a16", 128}}) {
    const auto& name = std::get<0>(one_case);
    const auto& group = std::get<1>(one_case);
    const at::Tensor x = correlated(600, 256), weight = at::randn({12, 256});
    CalibratedLayer layer(scheme(name, group), x, weight), pruned_only(scheme("2:4"), x, weight);
    REQUIRE(accepts_pruning(layer.scheme()).ok());
    PruneOptions options;
    const auto solved = solve_pruning(options, layer);
    REQUIRE(solved.ok());
    const Quantized& result = quantized(*solved);
    const at::Tensor value = quant::decode(result);
    const Sparsity& sparsity = *layer.scheme().sparsity;
    INFO(name, " ", group);
    CHECK(kept(value, sparsity.of).le(sparsity.keep).all().item<bool>());
    CHECK(result.codes.max().item<int>() <= result.args.max_code());
    CHECK(result.codes.min().item<int>() >= result.args.min_code());
    if (result.args.bits > 4) continue;  // rounding to 8 bits costs nothing beside pruning
    const at::Tensor first = prune(pruned_only, Method::kSparseGpt);
    const auto rounded = quant::fake_quantize(first, result.args, at::kBFloat16);
    REQUIRE(rounded.ok());
    CHECK(layer.loss(value) < layer.loss(*rounded));
  }
}

TEST_CASE("sparse pruning/ float weights are pruned, then rounded; static activations get their scale") {
  at::manual_seed(5);
  CalibratedLayer layer(scheme("2:4+fp8_static"), correlated(100, 32), at::randn({4, 32}));
  const auto solved = solve_pruning({}, layer);
  REQUIRE(solved.ok());
  CHECK(kept(decoded(*solved), 4).le(2).all().item<bool>());
  CHECK(solved->input_scale.defined());
}

TEST_CASE("sparse pruning/ a layer that no token reached is pruned by magnitude, and noted") {
  at::manual_seed(6);
  const at::Tensor weight = at::randn({4, 16});
  for (const Method method : {Method::kSparseGpt, Method::kWanda}) {
    CalibratedLayer layer(scheme("2:4"), at::zeros({0, 16}), weight);
    const at::Tensor expected = weight * ops::sparsity_mask(weight, {}, 2, 4);
    CHECK(at::equal(prune(layer, method), expected));
    CHECK(layer.recorded.kinds == std::vector<std::string>{"pruned by magnitude"});
  }
}

TEST_CASE("sparse pruning/ of equal weights the earlier stay, and the same input gives the same result") {
  const at::Tensor mask = ops::sparsity_mask(at::ones({2, 10}), {}, 2, 4);
  CHECK(at::equal(mask[0], at::tensor({1, 1, 0, 0, 1, 1, 0, 0, 1, 1}).to(at::kBool)));
  at::manual_seed(7);
  const at::Tensor x = correlated(100, 64), weight = at::randn({9, 64});
  const Scheme wanted = scheme("2:4+w4a16", 32);
  CalibratedLayer one(wanted, x, weight), two(wanted, x, weight);
  CHECK(at::equal(prune(one, Method::kSparseGpt), prune(two, Method::kSparseGpt)));
}

TEST_CASE("sparse pruning/ zero rows stay zero, and weights and inputs in bf16 and fp16 are taken as they are") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const char* name : {"2:4", "2:4+w4a16", "2:4+w8a8_static", "2:4+fp8_dynamic"}) {
      for (const Method method : {Method::kSparseGpt, Method::kWanda, Method::kMagnitude}) {
        at::manual_seed(8);
        at::Tensor weight = at::randn({5, 32}).to(dtype);
        weight[3].zero_();
        const Scheme plain = scheme(name);
        const bool grouped = plain.weight && plain.weight->granularity == Granularity::kGroup;
        CalibratedLayer layer(grouped ? scheme(name, 16) : plain, correlated(100, 32).to(dtype), weight);
        const at::Tensor pruned = prune(layer, method);
        INFO(name);
        CHECK(at::isfinite(pruned).all().item<bool>());
        CHECK((pruned[3] == 0).all().item<bool>());
        CHECK(kept(pruned, 4).le(2).all().item<bool>());
      }
    }
  }
}

TEST_CASE("sparse pruning/ groups that would cut a run, and weights that are not finite, are refused") {
  const Status status = accepts_pruning(scheme("2:6+w4a16", 32));
  CHECK(status.code() == Code::kUnsupported);
  CHECK(status.message().find("32") != std::string::npos);
  for (const double bad : {NAN, INFINITY}) {
    for (const Method method : {Method::kSparseGpt, Method::kWanda, Method::kMagnitude}) {
      at::Tensor weight = at::randn({4, 16});
      weight[1][3] = bad;
      CalibratedLayer layer(scheme("2:4"), at::randn({50, 16}), weight);
      PruneOptions options;
      options.method = method;
      const auto solved = solve_pruning(options, layer);
      REQUIRE_FALSE(solved.ok());
      CHECK(solved.status().code() == Code::kNumeric);
      CHECK(solved.status().message().starts_with("layer0.weight: "));
    }
  }
}
