#include "slim/quant.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <limits>

using namespace slim;

namespace {

at::Tensor random(std::vector<int64_t> shape, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape).to(at::kBFloat16).to(at::kFloat);
}

QuantArgs integer(int bits, Granularity granularity, int64_t group, bool symmetric) {
  QuantArgs args;
  args.bits = bits;
  args.granularity = granularity;
  args.group_size = group;
  args.symmetric = symmetric;
  args.block_rows = 3;
  args.block_columns = 5;
  return args;
}

QuantArgs e4m3(Granularity granularity) {
  QuantArgs args = integer(8, granularity, 16, true);
  args.type = NumberType::kFloat;
  return args;
}

constexpr Granularity kWeightGranularities[] = {Granularity::kTensor, Granularity::kChannel,
                                                Granularity::kGroup, Granularity::kBlock};

/// Scales spread over the elements that they serve.
at::Tensor per_element(const at::Tensor& scale, const QuantArgs& args, int64_t out, int64_t in) {
  at::Tensor all = scale.to(at::kFloat);
  if (args.granularity == Granularity::kGroup) all = all.repeat_interleave(args.group_size, 1);
  if (args.granularity == Granularity::kBlock) {
    all = all.repeat_interleave(args.block_rows, 0)
              .repeat_interleave(args.block_columns, 1)
              .narrow(0, 0, out)
              .narrow(1, 0, in);
  }
  return all.expand({out, in});
}

double max_abs(const at::Tensor& x) { return x.abs().max().item<double>(); }

}  // namespace

TEST_CASE("quant/ rounding errs by half a scale at most, for every width, granularity and zero point") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const Granularity granularity : kWeightGranularities) {
      const bool symmetric = bits % 2 == 0;
      const QuantArgs args = integer(bits, granularity, 16, symmetric);
      const at::Tensor w = random({7, 48}, bits);
      const auto params = quant::choose_params(w, args, at::kFloat);
      REQUIRE(params.ok());
      const at::Tensor codes = quant::encode(w, *params, args);
      CHECK(codes.min().item<int64_t>() >= args.min_code());
      CHECK(codes.max().item<int64_t>() <= args.max_code());
      const at::Tensor error =
          (quant::decode(codes, *params, args) - w) / per_element(params->scale, args, 7, 48);
      // The range ends at max_code + 1/2 when symmetric, and half a code is lost to the rounding of the zero point.
      CHECK(max_abs(error) <= (symmetric ? 0.5 : 1.0) + 1e-3);
    }
  }
}

TEST_CASE("quant/ scales have the shapes of slim::Quantized") {
  const at::Tensor w = random({7, 48}, 1);
  const auto shape = [&](Granularity g) {
    return quant::choose_params(w, integer(4, g, 16, false), at::kBFloat16)->scale.sizes().vec();
  };
  CHECK((shape(Granularity::kTensor) == std::vector<int64_t>{1, 1}));
  CHECK((shape(Granularity::kChannel) == std::vector<int64_t>{7, 1}));
  CHECK((shape(Granularity::kGroup) == std::vector<int64_t>{7, 3}));
  CHECK((shape(Granularity::kBlock) == std::vector<int64_t>{3, 10}));
  CHECK(
      (quant::choose_params(w, integer(4, Granularity::kGroup, 16, false), at::kHalf)->scale.scalar_type() ==
       at::kHalf));
}

TEST_CASE("quant/ decoding codes and encoding them again changes nothing") {
  for (const Granularity granularity : kWeightGranularities) {
    const QuantArgs args = integer(4, granularity, 16, true);
    const at::Tensor w = random({9, 32}, 3);
    const auto params = *quant::choose_params(w, args, at::kBFloat16);
    const at::Tensor codes = quant::encode(w, params, args);
    CHECK(at::equal(quant::encode(quant::decode(codes, params, args), params, args), codes));
    CHECK(at::equal(quant::fake_quantize(w, params, args), quant::decode(codes, params, args)));
  }
}

TEST_CASE("quant/ a weight that needs several slices is rounded as its rows are") {
  const QuantArgs args = integer(4, Granularity::kGroup, 128, false);
  const at::Tensor w = random({300, 1024}, 4);
  for (const auto method : {quant::RangeOptions::Method::kMinMax, quant::RangeOptions::Method::kMse}) {
    quant::RangeOptions options;
    options.method = method;
    options.steps = 5;
    const at::Tensor whole = *quant::fake_quantize(w, args, at::kBFloat16, options);
    CHECK(at::equal(whole.narrow(0, 250, 3),
                    *quant::fake_quantize(w.narrow(0, 250, 3), args, at::kBFloat16, options)));
  }
}

TEST_CASE("quant/ rows of zeros get scale 1 and codes that decode to zero") {
  const at::Tensor w = at::zeros({4, 32});
  for (const Granularity granularity : kWeightGranularities) {
    for (const bool symmetric : {true, false}) {
      const QuantArgs args = integer(4, granularity, 16, symmetric);
      const auto params = *quant::choose_params(w, args, at::kBFloat16);
      CHECK(at::equal(params.scale.to(at::kFloat), at::ones_like(params.scale.to(at::kFloat))));
      CHECK(max_abs(quant::decode(quant::encode(w, params, args), params, args)) == 0);
    }
    const auto params = *quant::choose_params(w, e4m3(granularity), at::kBFloat16);
    CHECK(max_abs(quant::decode(quant::encode(w, params, e4m3(granularity)), params, e4m3(granularity))) ==
          0);
  }
}

TEST_CASE("quant/ a layer of one input channel is exact per channel, up to the rounding of its scale") {
  const at::Tensor w = random({11, 1}, 5);
  const at::Tensor q = *quant::fake_quantize(w, integer(4, Granularity::kChannel, 1, false), at::kFloat);
  CHECK(max_abs(q - w) <= 1e-6 * max_abs(w));
}

TEST_CASE("quant/ NaN and Inf are refused wherever they are") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const Granularity granularity : kWeightGranularities) {
      at::Tensor w = random({6, 32}, 6);
      w[5][31] = bad;
      CHECK(quant::choose_params(w, integer(4, granularity, 16, true), at::kBFloat16).status().code() ==
            Code::kNumeric);
    }
  }
}

TEST_CASE("quant/ groups that do not divide the row are refused") {
  CHECK(quant::choose_params(random({4, 40}, 7), integer(4, Granularity::kGroup, 16, true), at::kBFloat16)
            .status()
            .code() == Code::kInvalidArgument);
}

TEST_CASE("quant/ E4M3 saturates and rounds ties to even") {
  const QuantArgs args = e4m3(Granularity::kTensor);
  const quant::Params one{at::ones({1, 1}), {}};
  const at::Tensor w = at::tensor({1000.0f, -1000.0f, 17.0f, 19.0f, 448.0f, 0.0f}).view({1, 6});
  const at::Tensor expected = at::tensor({448.0f, -448.0f, 16.0f, 20.0f, 448.0f, 0.0f}).view({1, 6});
  CHECK(at::equal(quant::decode(quant::encode(w, one, args), one, args), expected));
}

TEST_CASE(
    "quant/ a shrunk range never has a larger weighted error than the extremes, and is smaller with "
    "outliers") {
  for (const Granularity granularity : kWeightGranularities) {
    for (const bool symmetric : {true, false}) {
      const QuantArgs args = integer(3, granularity, 16, symmetric);
      at::Tensor w = random({8, 64}, 8);
      w.select(1, 3).mul_(6);
      quant::RangeOptions mse;
      mse.method = quant::RangeOptions::Method::kMse;
      mse.importance = random({64}, 9).square() + 0.01;
      mse.importance[3] = 0.001;
      const auto error = [&](const quant::RangeOptions& options) {
        return ((*quant::fake_quantize(w, args, at::kBFloat16, options) - w).square() * mse.importance)
            .sum()
            .item<double>();
      };
      CHECK(error(mse) < error({}));
    }
  }
}

TEST_CASE("quant/ layers that an engine fuses share their per-tensor scale") {
  quant::RangeOptions options;
  options.fused_abs_max = 44.8;
  const auto params =
      *quant::choose_params(random({4, 16}, 10), e4m3(Granularity::kTensor), at::kFloat, options);
  CHECK(params.scale.item<float>() == doctest::Approx(0.1));
}

TEST_CASE("quant/ a group index picks each channel's scale") {
  const QuantArgs args = integer(4, Granularity::kGroup, 16, false);
  const at::Tensor w = random({5, 32}, 11), order = at::randperm(32);
  const auto params = *quant::choose_params(w, args, at::kFloat);
  const at::Tensor codes = quant::encode(w, params, args);
  Quantized shuffled{args, codes.index_select(1, order), params.scale, params.zero,
                     order.div(16, "floor").to(at::kInt)};
  CHECK(at::equal(quant::decode(shuffled), quant::decode(codes, params, args).index_select(1, order)));
}

TEST_CASE("quant/ dynamic activations use a scale per token, and keep dtype and shape") {
  QuantArgs args = integer(8, Granularity::kToken, 0, true);
  args.dynamic = true;
  at::Tensor x = random({2, 3, 16}, 12);
  x[0][0].mul_(100);
  const at::Tensor q = quant::fake_quantize_activation(x, args, {}, {});
  const at::Tensor allowed = x.abs().amax(-1, true) / 127 / 2 * 1.001;
  CHECK(((q - x).abs() <= allowed).all().item<bool>());
  const at::Tensor half = quant::fake_quantize_activation(x.to(at::kBFloat16), args, {}, {});
  CHECK((half.scalar_type() == at::kBFloat16));
  CHECK((half.sizes() == x.sizes()));
}

TEST_CASE("quant/ static activations clip at the range of their scale and zero point") {
  QuantArgs args = integer(8, Granularity::kTensor, 0, false);
  const at::Tensor x = at::tensor({-5.0f, 0.0f, 1.0f, 300.0f}).view({1, 4});
  const at::Tensor q =
      quant::fake_quantize_activation(x, args, at::ones({1}), at::full({1}, -128, at::kChar));
  CHECK(at::equal(q, at::tensor({0.0f, 0.0f, 1.0f, 255.0f}).view({1, 4})));
}
