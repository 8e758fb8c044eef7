#include "single_layer.h"
#include "slim/feedback.hpp"

using namespace slim;
using namespace slim::testing;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

std::unique_ptr<Algorithm> gptq(const Options& changes = {}) {
  return create(slim_plugin_v1,
                {{"damp_percent", "0.01"},
                 {"act_group_aware", "false"},
                 {"desc_act", "false"},
                 {"static_groups", "true"},
                 {"range", "sweep"},
                 {"refit", "true"}},
                changes);
}

const Options kPlain{{"range", "minmax"}, {"refit", "false"}};

Quantized solved_by(const std::unique_ptr<Algorithm>& algorithm, CalibratedLayer& layer) {
  return quantized(solve(*algorithm, layer));
}

double rounding_loss(CalibratedLayer& layer, bool mse) {
  quant::RangeOptions options;
  if (mse) {
    options.method = quant::RangeOptions::Method::kMse;
    options.importance = layer.statistic<Gram>()->mean().diagonal();
  }
  const auto solved = quant::round_to_nearest(layer, options);
  REQUIRE(solved.ok());
  return layer.loss(quant::decode(std::get<Quantized>(solved->weight)));
}

void check_ranges(const Quantized& result, const QuantArgs& args) {
  CHECK(result.codes.min().item<int>() >= args.min_code());
  CHECK(result.codes.max().item<int>() <= args.max_code());
  CHECK((result.scale.to(at::kFloat) > 0).all().item<bool>());
  CHECK(result.zero.defined() == !args.symmetric);
}

/// GPTQ as optimal brain surgery states it, in fp64: after column i is rounded, the columns left move by what the inverse of
/// their Hessian says, and column i is eliminated from it.
at::Tensor textbook_codes(at::Tensor weight, at::Tensor hessian, const at::Tensor& scale,
                          const at::Tensor& zero, int64_t group_size, const QuantArgs& args) {
  weight = weight.to(at::kDouble).clone();
  hessian = hessian.to(at::kDouble).clone();
  hessian.diagonal().add_(0.01 * hessian.diagonal().mean());
  at::Tensor inverse = at::inverse(hessian);
  at::Tensor codes = at::zeros(weight.sizes(), at::kChar);
  for (int64_t i = 0; i < weight.size(1); ++i) {
    const at::Tensor s = scale.select(1, i / group_size).to(at::kDouble);
    const at::Tensor z = zero.defined() ? zero.select(1, i / group_size).to(at::kDouble) : at::zeros_like(s);
    const at::Tensor w = weight.select(1, i).clone();
    const at::Tensor code = (w / s + z).clamp(args.min_code(), args.max_code()).round();
    codes.select(1, i).copy_(code);
    const at::Tensor pivot = inverse.select(0, i).clone();
    weight -= at::outer((w - (code - z) * s) / pivot[i], pivot);
    inverse -= at::outer(pivot, pivot) / pivot[i];
  }
  return codes;
}

}  // namespace

TEST_CASE("gptq/ with given ranges the codes are those of the textbook in double precision") {
  at::manual_seed(1);
  for (const char* name : {"w2a16", "w3a16_asym", "w4a16", "w4a16_asym", "w8a16"}) {
    for (const auto& one_case :
         {std::tuple<int64_t, int64_t, int64_t>{7, 24, 8}, {40, 150, 50}, {3, 288, 144}, {33, 64, -1}}) {
      const auto& out = std::get<0>(one_case);
      const auto& in = std::get<1>(one_case);
      const auto& group = std::get<2>(one_case);
      const Scheme wanted = scheme(name, group);
      CalibratedLayer layer(wanted, correlated(2 * in, in), at::randn({out, in}));
      const Quantized rounded = std::get<Quantized>(quant::round_to_nearest(layer)->weight);
      const at::Tensor expected =
          textbook_codes(layer.weight(), layer.statistic<Gram>()->mean(), rounded.scale, rounded.zero,
                         group < 0 ? in : group, *wanted.weight);
      quant::SweepRequest request;
      request.weight = layer.weight();
      request.factor = **quant::input_factor(layer, "rounding", 0.01, quant::SweepOrder::kStored);
      request.args = &*wanted.weight;
      request.group = at::arange(in, at::kInt).floor_divide(group < 0 ? in : group);
      request.params = {rounded.scale, rounded.zero};
      const auto swept = quant::sweep(request);
      REQUIRE(swept.ok());
      // A quotient within fp32's rounding of a tie may fall to the other side, and moves what follows.
      const double equal = (swept->codes == expected).to(at::kFloat).mean().item<double>();
      CHECK_MESSAGE(equal >= 0.998, name, " ", out, "x", in, " group ", group, ": ", equal);
    }
  }
}

TEST_CASE(
    "gptq/ is never worse than rounding on its own loss, and better on dependent channels, whatever the "
    "shape and options") {
  at::manual_seed(2);
  const auto shapes = {std::tuple<int64_t, int64_t, int64_t>{1, 1, -1},
                       {5, 1, 1},
                       {1, 48, 16},
                       {33, 96, 32},
                       {40, 160, 32},
                       {6, 288, 96},
                       {20, 200, -1}};
  const std::vector<Options> variants = {{},
                                         kPlain,
                                         {{"desc_act", "true"}},
                                         {{"desc_act", "true"}, {"static_groups", "false"}},
                                         {{"range", "mse"}},
                                         {{"act_group_aware", "true"}}};
  for (const char* name :
       {"w2a16", "w2a16_asym", "w3a16", "w3a16_asym", "w4a16", "w4a16_asym", "w8a16", "w8a16_asym"}) {
    for (const auto& one_case : shapes) {
      const auto& out = std::get<0>(one_case);
      const auto& in = std::get<1>(one_case);
      const auto& group = std::get<2>(one_case);
      const Scheme wanted = scheme(name, group);
      for (const Options& changes : variants) {
        CalibratedLayer layer(wanted, correlated(3 * in + 5, in), at::randn({out, in}));
        const auto algorithm = gptq(changes);
        const Quantized result = solved_by(algorithm, layer);
        const bool mse = !changes.contains("range") || changes.at("range") != "minmax";
        const double loss = layer.loss(quant::decode(result)), rounding = rounding_loss(layer, mse);
        INFO(name, " ", out, "x", in, " group ", group);
        check_ranges(result, *wanted.weight);
        CHECK(result.scale.size(1) == (group < 0 ? 1 : in / group));
        if (!result.group_index.defined()) CHECK(loss <= rounding * (1 + 1e-4));
        CHECK(loss <= layer.recorded.metrics.at("loss of rounding") * static_cast<double>(out) * (1 + 1e-4));
        if (in >= 96) CHECK(loss < 0.95 * rounding);
      }
    }
  }
}

TEST_CASE("gptq/ stored group indices say which scale a channel has") {
  at::manual_seed(3);
  CalibratedLayer layer(scheme("w4a16", 16), correlated(300, 64), at::randn({9, 64}));
  const Quantized result = solved_by(gptq({{"desc_act", "true"}, {"static_groups", "false"}}), layer);
  REQUIRE(result.group_index.defined());
  CHECK(at::equal(at::bincount(result.group_index.to(at::kLong)), at::full({4}, 16, at::kLong)));
  // The most excited channel is in the first group, the least in the last.
  const at::Tensor mean_square = layer.statistic<Gram>()->mean().diagonal();
  CHECK(result.group_index[mean_square.argmax()].item<int>() == 0);
  CHECK(result.group_index[mean_square.argmin()].item<int>() == 3);
  const at::Tensor decoded = quant::decode(result);
  const at::Tensor by_hand =
      result.codes * result.scale.to(at::kFloat).index_select(1, result.group_index.to(at::kLong));
  CHECK(at::equal(decoded, by_hand));
  CHECK(layer.loss(decoded) < rounding_loss(layer, true));
  CHECK_FALSE(solved_by(gptq({{"desc_act", "true"}}), layer).group_index.defined());
}

TEST_CASE("gptq/ channels that calibration never excited keep their rounded value") {
  at::manual_seed(4);
  for (const char* damp : {"0.01", "0"}) {
    at::Tensor x = correlated(200, 32);
    for (const int64_t dead : {0, 7, 31}) x.select(1, dead).zero_();
    CalibratedLayer layer(scheme("w4a16", 16), x, at::randn({12, 32}));
    const Quantized result = solved_by(gptq({{"damp_percent", damp}}), layer);
    const at::Tensor rounded = quant::encode(layer.weight(), {result.scale, result.zero}, result.args);
    for (const int64_t dead : {0, 7, 31})
      CHECK(at::equal(result.codes.select(1, dead), rounded.select(1, dead)));
    CHECK_FALSE(at::equal(result.codes, rounded));
  }
}

TEST_CASE(
    "gptq/ a Gram matrix that fp32 cannot factorize is factorized in fp64, then half way to the diagonal, "
    "and noted") {
  at::manual_seed(5);
  const at::Tensor signal = at::randn({400, 4}), mixing = at::randn({4, 16}), weight = at::randn({8, 16});
  const Options undamped{{"damp_percent", "0"}};
  CalibratedLayer nearly(scheme("w4a16", 16), at::matmul(signal, mixing) + at::randn({400, 16}) * 2e-3,
                         weight);
  CalibratedLayer deficient(scheme("w4a16", 16), at::matmul(signal, mixing), weight);
  for (const auto& [layer, kind] :
       {std::pair{&nearly, "factorized in fp64"}, {&deficient, "factorized half way to the diagonal"}}) {
    const double loss = layer->loss(quant::decode(solved_by(gptq(undamped), *layer)));
    CHECK(layer->recorded.has(kind));
    CHECK(loss < rounding_loss(*layer, true));
    RecordedNotes& notes = layer->recorded;
    notes.kinds.clear();
    layer->cache.clear();
    solved_by(gptq(), *layer);
    CHECK_FALSE(notes.has(kind));
  }
}

TEST_CASE("gptq/ a layer without calibration is rounded, and noted") {
  at::manual_seed(6);
  for (const int64_t tokens : {0, 10}) {
    CalibratedLayer layer(scheme("w4a16", 16), at::zeros({tokens, 32}), at::randn({4, 32}));
    const Quantized result = solved_by(gptq({{"range", "minmax"}}), layer);
    CHECK(layer.recorded.has("rounding instead of gptq"));
    CHECK(at::equal(result.codes, std::get<Quantized>(quant::round_to_nearest(layer)->weight).codes));
  }
}

TEST_CASE("gptq/ layers that read one input share its factor; the same input gives the same codes") {
  at::manual_seed(7);
  const at::Tensor x = correlated(200, 64), first = at::randn({8, 64}), second = at::randn({24, 64});
  CalibratedLayer shared(scheme("w4a16", 32), x, first), alone(scheme("w4a16", 32), x, second);
  const auto algorithm = gptq();
  const Quantized one = solved_by(algorithm, shared);
  std::vector<const void*> before, after;
  for (const auto& [key, tensor] : shared.cache)
    before.push_back(tensor.defined() ? tensor.const_data_ptr() : nullptr);
  shared.weights.front() = second;
  const Quantized two = solved_by(algorithm, shared);
  for (const auto& [key, tensor] : shared.cache)
    after.push_back(tensor.defined() ? tensor.const_data_ptr() : nullptr);
  CHECK(before.size() > 0);
  CHECK(before == after);
  CHECK(at::equal(two.codes, solved_by(algorithm, alone).codes));
  shared.weights.front() = first;
  shared.cache.clear();
  const Quantized again = solved_by(algorithm, shared);
  CHECK(at::equal(one.codes, again.codes));
  CHECK(at::equal(one.scale, again.scale));
}

TEST_CASE("gptq/ int8 weights per channel come with the static activation scale that their scheme asks for") {
  at::manual_seed(8);
  for (const char* name : {"w8a8", "w8a8_static"}) {
    CalibratedLayer layer(scheme(name), correlated(200, 32), at::randn({8, 32}));
    const auto algorithm = gptq();
    REQUIRE(algorithm->accepts(layer.scheme()).ok());
    const auto solved = algorithm->solve(layer);
    REQUIRE(solved.ok());
    CHECK(solved->input_scale.defined() == (std::string(name) == "w8a8_static"));
    CHECK(layer.loss(quant::decode(std::get<Quantized>(solved->weight))) <= rounding_loss(layer, true));
  }
}

TEST_CASE("gptq/ zero rows stay zero, and weights and inputs in bf16 and fp16 are taken as they are") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const char* name : {"w2a16", "w3a16_asym", "w4a16", "w8a16"}) {
      at::manual_seed(10);
      at::Tensor weight = at::randn({6, 32}).to(dtype);
      weight[4].zero_();
      CalibratedLayer layer(scheme(name, 16), correlated(100, 32).to(dtype), weight);
      const Quantized result = solved_by(gptq(), layer);
      check_ranges(result, *layer.scheme().weight);
      CHECK(at::isfinite(result.scale.to(at::kFloat)).all().item<bool>());
      CHECK((quant::decode(result)[4] == 0).all().item<bool>());
    }
  }
}

TEST_CASE("gptq/ a layer of one channel, and one of a single row, are those of rounding to their own scale") {
  for (const char* name : {"w2a16", "w3a16_asym", "w4a16", "w8a16_asym"}) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{7, 1}, {1, 1}, {1, 24}}) {
      at::manual_seed(11);
      const at::Tensor weight = at::randn({out, in});
      CalibratedLayer layer(scheme(name, -1), at::randn({60, in}), weight);
      const Quantized one = solved_by(gptq(), layer), two = solved_by(gptq(), layer);
      check_ranges(one, *layer.scheme().weight);
      CHECK((same(one.codes, two.codes) && same(one.scale, two.scale)));
      CHECK(layer.loss(quant::decode(one)) <= layer.loss(at::zeros_like(weight)));
    }
  }
}

TEST_CASE("gptq/ schemes that are not integers per group or channel are refused") {
  for (const char* name : {"fp8_static", "fp8_dynamic", "fp8_block", "w8a8s", "2:4"}) {
    const Status status = gptq()->accepts(scheme(name));
    CHECK(status.code() == Code::kUnsupported);
    CHECK(status.message().find(name) != std::string::npos);
  }
}

TEST_CASE("gptq/ NaN and Inf in a weight or in the activations are errors that name the tensor or the layer") {
  at::manual_seed(9);
  at::Tensor x = correlated(50, 16), weight = at::randn({4, 16});
  x[3][5] = std::numeric_limits<float>::quiet_NaN();
  CalibratedLayer bad_input(scheme("w4a16", 16), x, weight.clone());
  x[3][5] = 1;
  weight[1][2] = std::numeric_limits<float>::infinity();
  CalibratedLayer bad_weight(scheme("w4a16", 16), x, weight);
  for (CalibratedLayer* layer : {&bad_input, &bad_weight}) {
    const auto solved = gptq({{"range", "minmax"}})->solve(*layer);
    REQUIRE_FALSE(solved.ok());
    CHECK(solved.status().code() == Code::kNumeric);
    CHECK(solved.status().message().starts_with(layer == &bad_weight ? "layer0.weight: " : "layer0: "));
  }
}
