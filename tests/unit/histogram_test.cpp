#include "slim/histogram.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <cmath>

#include "slim/quant.hpp"

using namespace slim;

namespace {

at::Tensor values(int64_t rows, int64_t columns, uint64_t seed, double size = 1) {
  at::manual_seed(seed);
  return at::randn({rows, columns}) * size;
}

Histogram histogram_of(std::initializer_list<at::Tensor> batches) {
  Histogram histogram;
  for (const at::Tensor& batch : batches) histogram.update(batch);
  return histogram;
}

bool equal(const TensorMap& a, const TensorMap& b) {
  return a.size() == b.size() && std::all_of(a.begin(), a.end(), [&](const auto& entry) {
           return b.contains(entry.first) && at::equal(entry.second, b.at(entry.first));
         });
}

QuantArgs activation(NumberType type, bool symmetric) {
  QuantArgs args;
  args.type = type;
  args.bits = 8;
  args.granularity = Granularity::kTensor;
  args.symmetric = symmetric;
  return args;
}

double rounding_error(const at::Tensor& x, const QuantArgs& args, const ValueRange& range) {
  const auto params = quant::params_from_range(at::full({1}, range.low, at::kFloat),
                                               at::full({1}, range.high, at::kFloat), args, at::kFloat);
  return (quant::fake_quantize_activation(x, args, params.scale, params.zero) - x)
      .square()
      .mean()
      .item<double>();
}

}  // namespace

TEST_CASE("histogram/ every value is counted in the bin that holds it") {
  const at::Tensor x = values(40, 30, 1, 3);
  const Histogram histogram = histogram_of({x});
  const at::Tensor counts = histogram.counts();
  CHECK(counts.sum().item<double>() == 1200);
  CHECK(histogram.tokens == 40);
  CHECK(histogram.min() == x.min().item<double>());
  CHECK(histogram.max() == x.max().item<double>());
  at::Tensor expected = at::zeros({2 * Histogram::kBinsPerSide}, at::kDouble);
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double value = x.view({-1})[i].item<double>();
    expected[static_cast<int64_t>(std::floor(value / histogram.width())) + Histogram::kBinsPerSide] += 1;
  }
  CHECK(at::equal(counts, expected));
}

TEST_CASE("histogram/ at least half of the bins of one side are in use") {
  for (const double largest : {1e-20, 0.3, 1.0, 1.5, 447.9, 6e4}) {
    const Histogram histogram = histogram_of({at::tensor({-largest / 3, largest}).view({2, 1})});
    const double used = largest / histogram.width();
    CHECK(used >= Histogram::kBinsPerSide / 2.0 * 0.999);
    CHECK(used <= Histogram::kBinsPerSide);
  }
}

TEST_CASE(
    "histogram/ batches in any order, merged parts and resumed runs give the same counts, bit for bit") {
  const at::Tensor a = values(7, 9, 1, 0.01), b = values(5, 9, 2, 20).to(at::kBFloat16).to(at::kFloat),
                   c = at::zeros({2, 9});
  const Histogram all = histogram_of({a, b, c});
  CHECK(equal(all.state(), histogram_of({at::cat({a, b, c})}).state()));
  CHECK(equal(all.state(), histogram_of({c, b, a}).state()));
  CHECK(equal(all.state(), histogram_of({b, c, a}).state()));
  for (const bool small_first : {true, false}) {
    Histogram left = histogram_of({small_first ? a : b});
    left.merge(histogram_of({small_first ? b : a, c}), 1);
    CHECK(equal(all.state(), left.state()));
  }
  Histogram zeros = histogram_of({c}), resumed;
  zeros.merge(histogram_of({a, b}), 1);
  CHECK(equal(all.state(), zeros.state()));
  REQUIRE(resumed.restore(histogram_of({a, c}).state()).ok());
  resumed.update(b);
  CHECK(equal(all.state(), resumed.state()));
  const auto copy = resumed.clone();
  resumed.update(b);
  CHECK(equal(all.state(), copy->state()));
}

TEST_CASE("histogram/ weights of a merge scale counts and tokens") {
  Histogram x = histogram_of({values(10, 4, 1)});
  const at::Tensor before = x.counts().clone();
  x.merge(x, 0.5);
  CHECK(x.tokens == 15);
  CHECK(at::equal(x.counts(), before * 1.5));
  Histogram untouched = histogram_of({values(10, 4, 1)});
  untouched.merge(histogram_of({values(10, 4, 2, 100)}), 0);
  CHECK(at::equal(untouched.counts(), before));
}

TEST_CASE("histogram/ follows a scale of equal powers of two and refuses others") {
  const at::Tensor x = values(10, 4, 1);
  Histogram histogram = histogram_of({x});
  CHECK(histogram.rescale(at::full({4}, 8.0)));
  CHECK(equal(histogram.state(), histogram_of({x / 8}).state()));
  CHECK(histogram.rescale(at::full({4}, 0.25)));
  CHECK(equal(histogram.state(), histogram_of({x / 2}).state()));
  CHECK(!histogram.rescale(at::full({4}, 3.0)));
  CHECK(!histogram.rescale(at::tensor({1.0, 2.0, 1.0, 1.0})));
  CHECK(equal(histogram.state(), histogram_of({x / 2}).state()));
  CHECK(Histogram().rescale(at::full({4}, 3.0)));
}

TEST_CASE("histogram/ nothing seen, zeros only, and values that are not finite") {
  Histogram none;
  none.update(at::zeros({0, 4}));
  CHECK(none.empty());
  CHECK((none.min() == 0 && none.max() == 0 && none.finite()));
  const Histogram zeros = histogram_of({at::zeros({3, 4})});
  CHECK(!zeros.empty());
  CHECK(zeros.counts().sum().item<double>() == 12);
  for (const double bad : {INFINITY, -INFINITY, NAN}) {
    const Histogram histogram = histogram_of({values(3, 4, 1), at::full({1, 4}, bad)});
    CHECK(!histogram.finite());
    Histogram restored;
    REQUIRE(restored.restore(histogram.state()).ok());
    CHECK(!restored.finite());
  }
  for (const bool symmetric : {true, false}) {
    for (const Histogram& empty : {none, zeros}) {
      const ValueRange percentile = quant::percentile_range(empty, 99, symmetric);
      const ValueRange least = quant::least_squares_range(empty, activation(NumberType::kInt, symmetric));
      CHECK((std::abs(percentile.low) < 1e-25 && std::abs(percentile.high) < 1e-25 && least.low == 0 &&
             least.high == 0));
    }
  }
  CHECK(quant::quantile_stepping_range(none).high == 0);
}

TEST_CASE("histogram/ damaged states are refused by entry") {
  const TensorMap good = histogram_of({values(3, 4, 1)}).state();
  for (const char* key : {"tokens", "finite", "range", "exponent"}) {
    TensorMap bad = good;
    bad.erase(key);
    Histogram histogram;
    CHECK(histogram.restore(bad).code() == Code::kCorrupt);
    CHECK(histogram.restore(bad).message().find(key) != std::string::npos);
  }
}

TEST_CASE("histogram/ percentiles leave out their share of the values, to within one bin") {
  const at::Tensor x = values(500, 40, 3), absolute = x.abs();
  const Histogram histogram = histogram_of({x});
  const double width = histogram.width(), count = static_cast<double>(x.numel());
  const auto above = [](const at::Tensor& y, double bound) {
    return static_cast<double>((y > bound).sum().item<int64_t>());
  };
  for (const double percent : {50.0, 99.0, 99.9, 100.0}) {
    const double outside = count * (100 - percent) / 100;
    const ValueRange symmetric = quant::percentile_range(histogram, percent, true),
                     both = quant::percentile_range(histogram, percent, false);
    CHECK(symmetric.low == -symmetric.high);
    CHECK(above(absolute, symmetric.high + width) <= outside + 1);
    CHECK(above(absolute, symmetric.high - width) >= outside);
    CHECK(above(x, both.high + width) <= outside / 2 + 1);
    CHECK(above(x, both.high - width) >= outside / 2);
    CHECK(above(-x, -both.low + width) <= outside / 2 + 1);
    CHECK(above(-x, -both.low - width) >= outside / 2);
    CHECK((both.low >= histogram.min() && both.high <= histogram.max()));
  }
}

TEST_CASE(
    "histogram/ the least-squares range rounds the values themselves better than extremes and percentiles "
    "do") {
  for (const bool symmetric : {true, false}) {
    for (const NumberType type : {NumberType::kInt, NumberType::kFloat}) {
      if (type == NumberType::kFloat && !symmetric) continue;
      const QuantArgs args = activation(type, symmetric);
      at::Tensor x = values(4000, 64, 4) + (symmetric ? 0.0 : 0.7);
      x.view({-1}).narrow(0, 0, 3).copy_(at::tensor({8.0, -7.0, 7.5}));
      const Histogram histogram = histogram_of({x});
      const ValueRange found = quant::least_squares_range(histogram, args);
      const double error = rounding_error(x, args, found);
      CHECK((found.low >= histogram.min() && found.high <= histogram.max()));
      CHECK(error <= rounding_error(x, args, {histogram.min(), histogram.max()}) * 1.0001);
      CHECK(error <= rounding_error(x, args, quant::percentile_range(histogram, 99.9, symmetric)) * 1.01);
      if (type == NumberType::kInt) {
        CHECK(error < 0.9 * rounding_error(x, args, {histogram.min(), histogram.max()}));
        CHECK(error <= rounding_error(x, args, quant::quantile_stepping_range(histogram)) * 1.01);
      }
    }
  }
}

TEST_CASE("histogram/ stepping quantiles clips the tail that costs less than it gains") {
  at::Tensor x = values(4000, 64, 5);
  x.view({-1}).narrow(0, 0, 2).copy_(at::tensor({9.0, -3.0}));
  const Histogram histogram = histogram_of({x});
  const ValueRange all{histogram.min(), histogram.max()}, found = quant::quantile_stepping_range(histogram);
  CHECK((found.low >= all.low && found.high <= all.high));
  CHECK(found.high < 6);
  CHECK(quant::spread_error(histogram, found) < quant::spread_error(histogram, all));
  // Values spread evenly over 256 steps: the error of each step is width² / 12.
  const at::Tensor even = at::arange(65536, at::kDouble).add_(0.5).div_(65536).to(at::kFloat).view({-1, 1});
  CHECK(quant::spread_error(histogram_of({even}), {0, 1}) ==
        doctest::Approx(1.0 / (256 * 256 * 12)).epsilon(0.01));
}
