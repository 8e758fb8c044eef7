#include "low_bit.h"

#include <cmath>
#include <limits>

#include "batch_extremes.h"
#include "single_layer.h"
#include "slim/quant.hpp"

using namespace slim;
using namespace slim::sparse;
using namespace slim::testing;

namespace {

/// The definition, written as loops over one row: codes and scale.
struct Row {
  std::vector<int> codes;
  float scale = 0;
};

Row by_hand(const std::vector<float>& w, const LowBitOptions& options) {
  std::vector<float> sorted;
  for (const float value : w) sorted.push_back(std::abs(value));
  const std::vector<float> magnitude = sorted;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double threshold = std::numeric_limits<double>::infinity();
  if (options.open_outlier && options.use_sigma) {
    double mean = 0, square = 0;
    for (const float value : magnitude) mean += value / static_cast<double>(w.size());
    for (const float value : magnitude) square += (value - mean) * (value - mean);
    threshold = options.sigma_factor * std::sqrt(square / static_cast<double>(w.size() - 1));
  } else if (options.open_outlier) {
    const auto k = static_cast<size_t>(static_cast<double>(w.size()) * options.fraction);
    if (k > 0) threshold = sorted[k - 1];
  }
  float inner = 0;
  for (const float value : magnitude) {
    if (!(value > threshold)) inner = std::max(inner, value);
  }
  if (inner == 0) inner = sorted[0];  // no inlier, or zeros alone
  Row row;
  row.scale = inner == 0 ? 1 : inner / 7;
  for (const float value : w) {
    row.codes.push_back(static_cast<int>(std::clamp(std::nearbyint(value / row.scale), -128.0F, 127.0F)));
  }
  return row;
}

void check_against_definition(const at::Tensor& weight, const LowBitOptions& options) {
  const auto result = low_bit_weight(weight, options);
  REQUIRE(result.ok());
  for (int64_t i = 0; i < weight.size(0); ++i) {
    const at::Tensor row = weight[i].contiguous();
    const float* values = row.const_data_ptr<float>();
    const Row expected = by_hand({values, values + row.numel()}, options);
    CHECK(result->scale[i][0].item<float>() == expected.scale);
    for (int64_t j = 0; j < weight.size(1); ++j) {
      REQUIRE(result->codes[i][j].item<int>() == expected.codes[static_cast<size_t>(j)]);
    }
  }
}

/// Rows that meet every branch: Gaussian, heavy tails, ties, far outliers, zeros, equal magnitudes, one value.
at::Tensor rows_of_every_kind(int64_t columns, uint64_t seed) {
  at::manual_seed(seed);
  at::Tensor weight = at::randn({8, columns});
  weight[1] = weight[1].pow(5);
  weight[2] = weight[2].mul(2).round().div(2);
  weight[3] = weight[3] * 0.01;
  weight[3][0] = -50;
  weight[4].zero_();
  weight[5] = weight[5].sign() * 0.25;
  weight[6].zero_();
  weight[6][columns / 2] = 3;
  weight[7] = weight[7].to(at::kBFloat16).to(at::kFloat);
  return weight;
}

SingleLayer layer_of(const at::Tensor& weight) { return {scheme("w8a8s"), {weight}, at::kFloat}; }

LowBitOptions with(LowBitOptions::Activation activation) {
  LowBitOptions options;
  options.activation = activation;
  return options;
}

}  // namespace

TEST_CASE(
    "sparse low-bit/ codes and scales are those of the definition, for every share, deviation and kind of "
    "row") {
  for (const int64_t columns : {2, 5, 64, 333}) {
    for (const double fraction : {0.01, 0.05, 0.1}) {
      LowBitOptions options;
      options.fraction = fraction;
      check_against_definition(rows_of_every_kind(columns, static_cast<uint64_t>(columns)), options);
    }
    for (const double sigma : {1.0, 3.0, 4.0}) {
      LowBitOptions options;
      options.use_sigma = true;
      options.sigma_factor = sigma;
      check_against_definition(rows_of_every_kind(columns, static_cast<uint64_t>(columns) + 7), options);
    }
    LowBitOptions closed;
    closed.open_outlier = false;
    check_against_definition(rows_of_every_kind(columns, 3), closed);
  }
}

TEST_CASE("sparse low-bit/ about a fifteenth of Gaussian weights is protected by three sigma of |w|") {
  LowBitOptions options;
  options.use_sigma = true;
  at::manual_seed(0);
  const auto result = low_bit_weight(at::randn({16, 4096}), options);
  CHECK(result->outlier_share > 0.06);
  CHECK(result->outlier_share < 0.08);
  const double inliers = (result->codes.abs() <= 7).to(at::kDouble).mean().item<double>();
  CHECK(inliers >= 1 - result->outlier_share);
}

TEST_CASE("sparse low-bit/ zero rows get scale 1 and codes 0, and one column has a scale") {
  const auto zeros = low_bit_weight(at::zeros({3, 16}), {});
  CHECK(at::equal(zeros->scale, at::ones({3, 1})));
  CHECK(zeros->codes.abs().max().item<int>() == 0);
  CHECK(zeros->zero_rows == 3);
  LowBitOptions sigma;
  sigma.use_sigma = true;
  const auto column = low_bit_weight(at::tensor({2.0F, -3.5F}).view({2, 1}), sigma);
  CHECK(column->codes[0][0].item<int>() == 7);
  CHECK(column->codes[1][0].item<int>() == -7);
}

TEST_CASE("sparse low-bit/ weights beyond 127 scales are clipped and counted, or widen the scale") {
  at::Tensor weight = at::full({1, 200}, 0.16);
  weight[0][3] = 5.3;
  LowBitOptions options;
  options.fraction = 0.01;  // k = 2: one weight protected
  const auto clipped = low_bit_weight(weight, options);
  CHECK(clipped->saturated == 1);
  CHECK(clipped->codes[0][3].item<int>() == 127);
  options.widen = true;
  const auto widened = low_bit_weight(weight, options);
  CHECK(widened->saturated == 0);
  CHECK(widened->widened_rows == 1);
  CHECK(widened->scale[0][0].item<float>() == 5.3F / 127);
}

TEST_CASE("sparse low-bit/ one scale for the matrix is that of the largest inlier") {
  at::manual_seed(4);
  const at::Tensor weight = at::randn({6, 300});
  LowBitOptions options;
  const auto rows = low_bit_weight(weight, options);
  options.whole_matrix = true;
  const auto whole = low_bit_weight(weight, options);
  CHECK((whole->scale == rows->scale.max()).all().item<bool>());
}

namespace {

/// co_sparse as loops over the matrix: what is protected, codes at a scale, and the error of a row.
struct CoSparse {
  explicit CoSparse(const at::Tensor& weight, double fraction) {
    for (int64_t i = 0; i < weight.size(0); ++i) {
      const at::Tensor row = weight[i].contiguous();
      rows.emplace_back(row.const_data_ptr<float>(), row.const_data_ptr<float>() + row.numel());
    }
    std::vector<float> sorted;
    for (const auto& row : rows)
      for (const float value : row) sorted.push_back(std::abs(value));
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const auto k = static_cast<size_t>(static_cast<double>(sorted.size()) * fraction);
    if (k > 0) threshold = sorted[k - 1];
  }
  float largest_inlier(size_t row) const {
    float inner = 0;
    for (const float value : rows[row]) {
      if (std::abs(value) <= threshold) inner = std::max(inner, std::abs(value));
    }
    return inner;
  }
  int code(float value, float scale) const {
    const bool outlier = std::abs(value) > threshold;
    return static_cast<int>(
        std::clamp(std::nearbyint(value / scale), outlier ? -128.0F : -7.0F, outlier ? 127.0F : 7.0F));
  }
  double error(size_t row, float scale) const {
    double sum = 0;
    for (const float value : rows[row]) {
      const double off = code(value, scale) * static_cast<double>(scale) - value;
      sum += off * off;
    }
    return sum;
  }
  /// The least error of these rows at a common scale, over a fine grid within a fifth of `scale`.
  double least_error(const std::vector<size_t>& some, float scale) const {
    double least = std::numeric_limits<double>::infinity();
    for (int i = -1000; i <= 1000; ++i) {
      double sum = 0;
      for (const size_t row : some) sum += error(row, scale * (1 + 0.2F * static_cast<float>(i) / 1000));
      least = std::min(least, sum);
    }
    return least;
  }
  std::vector<std::vector<float>> rows;
  float threshold = std::numeric_limits<float>::infinity();
};

at::Tensor with_outliers(int64_t rows, int64_t columns) {
  at::Tensor weight = at::randn({rows, columns}) * at::rand({rows, 1}).add(0.5);
  return weight * at::where(at::rand({rows, columns}) < 0.02, 5.0, 1.0);
}

}  // namespace

TEST_CASE(
    "sparse low-bit/ co_sparse protects a share of the whole matrix, keeps all others in -7..7, and its "
    "scales are of least squared error within a fifth of the largest inlier's") {
  at::manual_seed(5);
  for (const double fraction : {0.0, 0.01, 0.1}) {
    for (const bool whole : {false, true}) {
      const at::Tensor weight = with_outliers(6, 90);
      LowBitOptions options;
      options.co_sparse = true;
      options.fraction = fraction;
      options.whole_matrix = whole;
      const auto result = low_bit_weight(weight, options);
      REQUIRE(result.ok());
      const CoSparse definition(weight, fraction);
      double found = 0, protected_weights = 0;
      float largest = 0;
      for (size_t i = 0; i < 6; ++i) largest = std::max(largest, definition.largest_inlier(i));
      for (size_t i = 0; i < 6; ++i) {
        const auto row = static_cast<int64_t>(i);
        const auto scale = result->scale[row][0].item<float>();
        for (size_t j = 0; j < 90; ++j) {
          const float value = definition.rows[i][j];
          protected_weights += std::abs(value) > definition.threshold ? 1 : 0;
          REQUIRE(result->codes[row][static_cast<int64_t>(j)].item<int>() == definition.code(value, scale));
        }
        const float plain = (whole ? largest : definition.largest_inlier(i)) / 7;
        CHECK(std::abs(scale / plain - 1) <= 0.2001F);
        if (!whole) CHECK(definition.error(i, scale) <= 1.01 * definition.least_error({i}, plain));
        found += definition.error(i, scale);
      }
      CHECK(result->outlier_share == doctest::Approx(protected_weights / 540));
      if (whole) CHECK(found <= 1.01 * definition.least_error({0, 1, 2, 3, 4, 5}, largest / 7));
      if (whole) CHECK((result->scale == result->scale[0][0]).all().item<bool>());
    }
  }
}

TEST_CASE("sparse low-bit/ co_sparse of zero rows, of a row of outliers alone, of one column and of fp16 weights") {
  at::manual_seed(6);
  at::Tensor weight = with_outliers(4, 64);
  weight[1].zero_();
  weight[2] = at::randn({64}).sign() * 40;  // all beyond the matrix's threshold
  LowBitOptions options;
  options.co_sparse = true;
  options.fraction = 0.1;  // the 25th of 256: among the 64 of equal size
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor stored = weight.to(dtype).to(at::kFloat);
    const auto a = low_bit_weight(stored, options), b = low_bit_weight(stored, options);
    REQUIRE(a.ok());
    CHECK(a->zero_rows == 1);
    CHECK(a->scale[1][0].item<float>() == 1);
    CHECK(a->codes[1].abs().max().item<int>() == 0);
    CHECK((at::isfinite(a->scale) & (a->scale > 0)).all().item<bool>());
    CHECK(at::equal(a->codes, b->codes));
  }
  weight[2].mul_(at::linspace(1, 2, 64));
  weight[0].mul_(1e-3);
  weight[3].mul_(1e-3);
  options.fraction = 0.25;  // the 64th: the least of row 2, all others of which are protected
  const auto outliers = low_bit_weight(weight, options);
  CHECK(outliers->outlier_share == doctest::Approx(63.0 / 256));
  options.fraction = 0.3;
  CHECK(low_bit_weight(weight, options)->unprotected_rows == 1);
  CHECK(low_bit_weight(at::randn({5, 1}), options)->codes.abs().max().item<int>() <= 127);
}

TEST_CASE("sparse low-bit/ NaN and Inf are refused, and bf16 values give the same result twice") {
  at::Tensor weight = at::randn({2, 8});
  weight[1][2] = std::numeric_limits<float>::quiet_NaN();
  CHECK(low_bit_weight(weight, {}).status().code() == Code::kNumeric);
  weight[1][2] = std::numeric_limits<float>::infinity();
  CHECK(low_bit_weight(weight, {}).status().code() == Code::kNumeric);
  weight[1][2] = 0;
  CHECK(at::equal(low_bit_weight(weight, {})->codes, low_bit_weight(weight, {})->codes));
}

TEST_CASE("sparse activations/ method 1 is the mean of the batches' extremes, zero included") {
  SingleLayer layer = layer_of(at::randn({4, 8}));
  const LowBitOptions options = with(LowBitOptions::Activation::kMeanExtremes);
  observe_low_bit(options, layer.layer(), 8, layer.requests);
  at::Tensor first = at::full({3, 8}, 1.0), second = at::full({2, 8}, 2.0);
  first[0][0] = -1.0;
  first[2][7] = 4.0;
  second[1][1] = -1.6;
  second[0][3] = 2.2;
  layer.requests.update(first.to(at::kFloat));
  layer.requests.update(second.to(at::kFloat));
  const auto solved = solve_low_bit(options, layer);
  REQUIRE(solved.ok());
  const float low = static_cast<float>((-1.0 + static_cast<double>(-1.6F)) / 2),
              high = static_cast<float>((4.0 + static_cast<double>(2.2F)) / 2);
  CHECK(solved->input_scale.item<float>() == (high - low) / 255);
  CHECK(solved->input_zero.item<int>() == -53);  // the specification's example: -1.3 .. 3.1
}

TEST_CASE("sparse activations/ extremes follow a scale, merge by weight and survive saving") {
  at::manual_seed(2);
  BatchExtremes direct(4), scaled(4);
  const at::Tensor s = at::tensor({0.5F, 2.0F, 4.0F, 1.5F});
  std::vector<at::Tensor> batches;
  for (int i = 0; i < 7; ++i) batches.push_back(at::randn({5, 4}));
  for (const at::Tensor& x : batches) {
    scaled.update(x);
    direct.update(x / s);
  }
  REQUIRE(scaled.rescale(s));
  CHECK(scaled.mean_range().low == direct.mean_range().low);
  CHECK(scaled.mean_range().high == direct.mean_range().high);
  CHECK(scaled.outlier_ratio() == doctest::Approx(direct.outlier_ratio()));
  BatchExtremes back(4);
  REQUIRE(back.restore(direct.state()).ok());
  CHECK(back.mean_range().low == direct.mean_range().low);
  CHECK(back.outlier_ratio() == direct.outlier_ratio());
  CHECK(back.tokens == direct.tokens);
  BatchExtremes wrong(5);
  CHECK(wrong.restore(direct.state()).code() == Code::kCorrupt);
  BatchExtremes merged(4);
  merged.merge(direct, 0.5);
  CHECK(merged.mean_range().high == doctest::Approx(direct.mean_range().high));
  CHECK(merged.tokens == direct.tokens / 2);
  BatchExtremes none(4);
  none.update(at::zeros({0, 4}));
  CHECK(none.batches() == 0);
}

TEST_CASE("sparse activations/ method 3 takes the histogram unless a value stands out fifty deviations") {
  const LowBitOptions mixed = with(LowBitOptions::Activation::kMixed),
                      extremes = with(LowBitOptions::Activation::kMeanExtremes),
                      histogram = with(LowBitOptions::Activation::kHistogram);
  for (const bool outlier : {false, true}) {
    SingleLayer layer = layer_of(at::randn({4, 64}));
    observe_low_bit(mixed, layer.layer(), 64, layer.requests);
    at::manual_seed(1);
    at::Tensor x = at::randn({256, 64});
    if (outlier) x[0][0] = 1000;
    layer.requests.update(x);
    layer.requests.update(at::randn({256, 64}));
    const float chosen = solve_low_bit(mixed, layer)->input_scale.item<float>();
    CHECK(chosen == solve_low_bit(outlier ? extremes : histogram, layer)->input_scale.item<float>());
    CHECK(solve_low_bit(histogram, layer)->input_scale.item<float>() !=
          solve_low_bit(extremes, layer)->input_scale.item<float>());
  }
}

TEST_CASE("sparse activations/ without a token the layer is named, and NaN is refused") {
  SingleLayer layer = layer_of(at::randn({4, 8}));
  observe_low_bit({}, layer.layer(), 8, layer.requests);
  CHECK(solve_low_bit({}, layer).status().message().starts_with("layer0: "));
  layer.requests.update(at::full({1, 8}, std::numeric_limits<float>::quiet_NaN()));
  CHECK(solve_low_bit({}, layer).status().code() == Code::kNumeric);
}

TEST_CASE("sparse low-bit/ a weight that is not finite is refused with its tensor's name") {
  at::Tensor weight = at::randn({4, 8});
  weight[2][1] = std::numeric_limits<float>::infinity();
  SingleLayer layer = layer_of(weight);
  observe_low_bit({}, layer.layer(), 8, layer.requests);
  layer.requests.update(at::randn({4, 8}));
  CHECK(solve_low_bit({}, layer).status().message().starts_with("layer0.weight: "));
}

TEST_CASE(
    "sparse low-bit/ a bias too large for a row of tiny weights raises the row's scale until it fits 32 "
    "bits") {
  at::Tensor weight = at::randn({2, 8});
  weight[0].mul_(1e-12);
  SingleLayer layer = layer_of(weight);
  layer.layer_bias = at::full({2}, 100.0);
  observe_low_bit({}, layer.layer(), 8, layer.requests);
  layer.requests.update(at::randn({4, 8}));
  const auto solved = solve_low_bit({}, layer);
  REQUIRE(solved.ok());
  const at::Tensor deq = solved->input_scale * std::get<Quantized>(solved->weight).scale.view({-1});
  CHECK((100.0 / deq).max().item<double>() <= (1 << 30) * 1.000001);
}

TEST_CASE("sparse/ options that exclude each other are refused with what to do") {
  const auto options = [](const std::string& key, const std::string& value) {
    Options all = {{"fraction", "0.01"},     {"use_sigma", "false"}, {"sigma_factor", "3"},
                   {"is_lowbit", "true"},    {"co_sparse", "false"}, {"act_method", "2"},
                   {"open_outlier", "true"}, {"mm_tensor", "false"}, {"saturation", "clip"}};
    all[key] = value;
    return LowBitOptions::from(all);
  };
  CHECK(options("use_sigma", "true")->use_sigma);
  CHECK(options("act_method", "3")->activation == LowBitOptions::Activation::kMixed);
  CHECK(options("co_sparse", "true").status().code() == Code::kInvalidArgument);
  CHECK(options("is_lowbit", "false").status().message().find("w8a8_static") != std::string::npos);
}
