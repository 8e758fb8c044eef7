#include "low_bit.h"

#include <ATen/ATen.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <vector>

#include "batch_extremes.h"
#include "slim/histogram.hpp"
#include "slim/quant.hpp"

namespace slim::sparse {
namespace {

constexpr double kLowBitMax = 7, kMinCode = -128, kMaxCode = 127;
/// msmodelslim's border between histogram and extremes in act_method 3.
constexpr double kLargestHistogramRatio = 50;
/// Bounds the temporaries of one slice of rows.
constexpr int64_t kElementsPerSlice = int64_t{1} << 24;

double number(const Options& options, std::string_view key) {
  const std::string& text = options.find(key)->second;
  double value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);  // the schema has checked it
  return value;
}

/// The k-th largest of each row of `magnitudes` [rows, n] as [rows, 1]; infinity for k = 0: nothing is larger.
at::Tensor kth_largest(const at::Tensor& magnitudes, int64_t k) {
  if (k == 0)
    return at::full({magnitudes.size(0), 1}, std::numeric_limits<double>::infinity(), magnitudes.options());
  return std::get<0>(magnitudes.topk(k, 1)).narrow(1, k - 1, 1);
}

/// What a weight must exceed to be protected: [rows, 1].
at::Tensor row_thresholds(const at::Tensor& magnitudes, const LowBitOptions& options) {
  const bool one_column = magnitudes.size(1) == 1;  // its own largest, without a deviation
  if (!options.open_outlier || one_column) return kth_largest(magnitudes, 0);
  if (options.use_sigma) return magnitudes.std(1, /*unbiased=*/true, /*keepdim=*/true) * options.sigma_factor;
  return kth_largest(magnitudes,
                     static_cast<int64_t>(static_cast<double>(magnitudes.size(1)) * options.fraction));
}

at::Tensor matrix_threshold(const at::Tensor& weight, const LowBitOptions& options) {
  const at::Tensor magnitudes = weight.abs().reshape({1, -1});
  const auto k = static_cast<int64_t>(static_cast<double>(magnitudes.size(1)) * options.fraction);
  return kth_largest(magnitudes, options.open_outlier ? k : 0);
}

/// A threshold for each row [rows, 1] that leaves inliers, and max inlier / 7: their scales.
struct Split {
  at::Tensor threshold, scale;
};

Split split_rows(const at::Tensor& weight, const LowBitOptions& options, const at::Tensor& threshold,
                 LowBitWeight& result) {
  const at::Tensor magnitudes = weight.abs();
  const at::Tensor largest = magnitudes.amax(1, /*keepdim=*/true);
  Split split;
  split.threshold =
      threshold.defined() ? threshold.expand_as(largest) : row_thresholds(magnitudes, options);
  const at::Tensor outlier = magnitudes > split.threshold;
  const at::Tensor inner = magnitudes.masked_fill(outlier, 0).amax(1, /*keepdim=*/true);
  const at::Tensor hollow =
      (inner == 0).logical_and(largest > 0);  // outliers alone, or over zeros: no scale follows from those
  split.threshold = at::where(hollow, std::numeric_limits<double>::infinity(), split.threshold);
  split.scale = at::where(hollow, largest, inner) / kLowBitMax;
  result.zero_rows += (largest == 0).sum().item<int64_t>();
  result.unprotected_rows += hollow.sum().item<int64_t>();
  result.outlier_share += outlier.logical_and(hollow.logical_not()).sum().item<double>();
  return split;
}

/// Codes of some rows, still in fp32 and not yet clamped to int8; `inlier_bound` keeps those below the threshold in -7..7.
at::Tensor rounded(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& threshold,
                   bool inlier_bound) {
  at::Tensor codes = (weight / scale).round_();
  if (!inlier_bound) return codes;
  return at::where(weight.abs() > threshold, codes, codes.clamp(-kLowBitMax, kLowBitMax));
}

/// The scales that co_sparse tries, as multiples of max inlier / 7.
at::Tensor candidates() {
  constexpr int kSteps = 40;
  constexpr double kWidest = 0.2;
  return at::arange(-kSteps, kSteps + 1, at::kFloat).mul_(kWidest / kSteps).add_(1.0);
}

/// Σ (ŵ - w)² of each row for every candidate: [rows, candidates].
at::Tensor search_errors(const at::Tensor& weight, const Split& split) {
  std::vector<at::Tensor> errors;
  const at::Tensor multiples = candidates();
  for (int64_t i = 0; i < multiples.numel(); ++i) {
    const at::Tensor scale = split.scale * multiples[i];
    const at::Tensor codes = rounded(weight, scale, split.threshold, /*inlier_bound=*/true);
    errors.push_back((codes.clamp(kMinCode, kMaxCode) * scale).sub_(weight).square_().sum(1));
  }
  return at::stack(errors, 1);
}

void widen_scales(const at::Tensor& largest, at::Tensor& scale, LowBitWeight& result) {
  const at::Tensor least = largest / kMaxCode;
  result.widened_rows = (least > scale).sum().item<int64_t>();
  scale = at::maximum(scale, least);
}

template <class F>
void for_row_slices(const at::Tensor& weight, F&& f) {
  const int64_t step = std::max<int64_t>(1, kElementsPerSlice / std::max<int64_t>(1, weight.size(1)));
  for (int64_t begin = 0; begin < weight.size(0); begin += step)
    f(begin, std::min(step, weight.size(0) - begin));
}

/// co_sparse: of the candidates the one of least squared error, for each row, or for the `whole` matrix. (msmodelslim's search is not
/// public; it ends within a few percent of max inlier / 7 too.)
at::Tensor searched_scales(const at::Tensor& weight, const Split& split, bool whole) {
  const at::Tensor multiples = candidates();
  at::Tensor errors = at::empty({weight.size(0), multiples.numel()}, weight.options());
  for_row_slices(weight, [&](int64_t begin, int64_t rows) {
    const Split part{split.threshold.narrow(0, begin, rows), split.scale.narrow(0, begin, rows)};
    errors.narrow(0, begin, rows).copy_(search_errors(weight.narrow(0, begin, rows), part));
  });
  if (whole) errors = errors.sum(0, /*keepdim=*/true);
  return split.scale * multiples.index_select(0, errors.argmin(1)).unsqueeze(1);
}

// ---- one layer ---------------------------------------------------------------------------------------

Result<ValueRange> activation_range(const LowBitOptions& options, LayerContext& context) {
  const auto* extremes = context.statistic<BatchExtremes>();
  const auto* histogram = context.statistic<Histogram>();
  const bool seen = (extremes && extremes->batches() > 0) || (histogram && !histogram->empty());
  if (!seen) {
    return Status(Code::kInvalidArgument,
                  context.layer().name +
                      ": static activation scales need calibration data, and no token "
                      "reached this layer; pass --calib, or leave the layer in float with ignore_layers");
  }
  bool use_histogram = options.activation == LowBitOptions::Activation::kHistogram;
  if (options.activation == LowBitOptions::Activation::kMixed) {
    const double ratio = extremes->outlier_ratio();
    context.notes().metric(context.layer().name, "activation outlier ratio", ratio);
    use_histogram = ratio <= kLargestHistogramRatio;
  }
  const ValueRange mean = use_histogram ? ValueRange{} : extremes->mean_range();
  const bool finite = use_histogram ? histogram->finite() : std::isfinite(mean.high - mean.low);
  if (!finite) return Status(Code::kNumeric, context.layer().name + ": the layer's input holds NaN or Inf");
  return use_histogram ? quant::quantile_stepping_range(*histogram) : mean;
}

/// Smallest scales with which round(bias / (input_scale * scale)) fits an int32, with room for the offset's share.
at::Tensor bias_floor(const at::Tensor& bias, double input_scale) {
  constexpr double kLargestBias = 1 << 30;
  return bias.defined() ? bias.abs().div(input_scale * kLargestBias).unsqueeze(1) : at::Tensor();
}

void report(const LowBitWeight& weight, const LowBitOptions& options, LayerContext& context) {
  const std::string& name = context.layer().name;
  const auto rows = [&](int64_t count) {
    return std::to_string(count) + " of " + std::to_string(weight.codes.size(0)) + " rows";
  };
  Notes& notes = context.notes();
  if (weight.zero_rows > 0) notes.note("rows of zeros, scale 1", name, rows(weight.zero_rows));
  if (options.open_outlier && !options.use_sigma && weight.outlier_share == 0) {
    notes.note("nothing protected", name,
               "fraction of " + std::to_string(weight.codes.size(1)) + " columns is less than two weights");
  }
  if (weight.unprotected_rows > 0)
    notes.note("no inlier left, nothing protected", name, rows(weight.unprotected_rows));
  if (weight.widened_rows > 0)
    notes.note("scale widened for protected weights", name, rows(weight.widened_rows));
  if (weight.saturated > 0) {
    notes.note("protected weights clipped", name,
               std::to_string(weight.saturated) + " weights beyond 127 scales" +
                   (options.widen ? "" : "; saturation = \"widen\" keeps them"));
  }
  const auto count = static_cast<double>(weight.codes.numel());
  notes.metric(name, "zero_share", (weight.codes == 0).sum().item<double>() / count);
  notes.metric(name, "protected_share", weight.outlier_share);
}

}  // namespace

Result<LowBitOptions> LowBitOptions::from(const Options& options) {
  LowBitOptions result;
  result.fraction = number(options, "fraction");
  result.use_sigma = options.at("use_sigma") == "true";
  result.sigma_factor = number(options, "sigma_factor");
  result.open_outlier = options.at("open_outlier") == "true";
  result.co_sparse = options.at("co_sparse") == "true";
  result.whole_matrix = options.at("mm_tensor") == "true";
  result.widen = options.at("saturation") == "widen";
  result.activation = static_cast<Activation>(static_cast<int>(number(options, "act_method")));
  const bool low_bit = options.at("is_lowbit") == "true";
  const auto refuse = [](const std::string& why) { return Status(Code::kInvalidArgument, "sparse: " + why); };
  if (low_bit && result.co_sparse)
    return refuse("is_lowbit and co_sparse are two ways to one result; set is_lowbit = false for co_sparse");
  if (!low_bit && !result.co_sparse)
    return refuse("w8a8s needs is_lowbit or co_sparse; for plain 8 bits use scheme w8a8_static");
  if (result.co_sparse && result.use_sigma)
    return refuse("co_sparse protects a share of the matrix (fraction); it has no use_sigma");
  return result;
}

Result<LowBitWeight> low_bit_weight(const at::Tensor& weight, const LowBitOptions& options,
                                    const at::Tensor& floor, at::ScalarType scale_dtype) {
  if (weight.numel() == 0) return Status(Code::kInvalidArgument, "the weight is empty");
  if (!at::isfinite(weight).all().item<bool>())
    return Status(Code::kNumeric, "the weight holds NaN or Inf; the checkpoint is damaged");
  LowBitWeight result;
  const at::Tensor threshold = options.co_sparse ? matrix_threshold(weight, options) : at::Tensor();
  at::Tensor largest = at::empty({weight.size(0), 1}, weight.options());
  Split all{at::empty_like(largest), at::empty_like(largest)};
  for_row_slices(weight, [&](int64_t begin, int64_t rows) {
    const at::Tensor slice = weight.narrow(0, begin, rows);
    const Split split = split_rows(slice, options, threshold, result);
    all.threshold.narrow(0, begin, rows).copy_(split.threshold);
    all.scale.narrow(0, begin, rows).copy_(split.scale);
    largest.narrow(0, begin, rows).copy_(slice.abs().amax(1, /*keepdim=*/true));
  });
  if (options.whole_matrix) all.scale = all.scale.max().expand_as(all.scale).contiguous();
  if (options.co_sparse) all.scale = searched_scales(weight, all, options.whole_matrix);
  result.scale = all.scale;
  if (options.widen)
    widen_scales(options.whole_matrix ? largest.max().expand_as(largest) : largest, result.scale, result);
  if (floor.defined()) result.scale = at::maximum(result.scale, options.whole_matrix ? floor.max() : floor);
  result.scale = result.scale.to(scale_dtype).to(at::kFloat);
  result.scale = at::where(result.scale == 0, at::ones_like(result.scale), result.scale);
  result.codes = at::empty(weight.sizes(), weight.options().dtype(at::kChar));
  for_row_slices(weight, [&](int64_t begin, int64_t rows) {
    at::Tensor codes = rounded(weight.narrow(0, begin, rows), result.scale.narrow(0, begin, rows),
                               all.threshold.narrow(0, begin, rows), options.co_sparse);
    result.saturated += (codes > kMaxCode).logical_or_(codes < kMinCode).sum().item<int64_t>();
    result.codes.narrow(0, begin, rows).copy_(codes.clamp_(kMinCode, kMaxCode));
  });
  result.outlier_share /= static_cast<double>(weight.numel());
  return result;
}

void observe_low_bit(const LowBitOptions& options, const Layer& layer, int64_t features,
                     Observations& observations) {
  using Activation = LowBitOptions::Activation;
  if (options.activation != Activation::kHistogram) observations.want<BatchExtremes>(layer.input, features);
  if (options.activation != Activation::kMeanExtremes) observations.want<Histogram>(layer.input);
}

Result<Solved> solve_low_bit(const LowBitOptions& chosen, LayerContext& context) {
  const Scheme& scheme = context.scheme();
  SLIM_ASSIGN(const ValueRange range, activation_range(chosen, context));
  const auto bound = [](double value) { return at::full({1}, value, at::kFloat); };
  const quant::Params input =
      quant::params_from_range(bound(range.low), bound(range.high), *scheme.input, context.scale_dtype());
  LowBitOptions options = chosen;
  const bool one_scale = scheme.weight->granularity == Granularity::kTensor;
  options.whole_matrix = options.whole_matrix || one_scale;
  const at::Tensor floor = bias_floor(context.bias(), input.scale.to(at::kFloat).item<double>());
  Result<LowBitWeight> weight = low_bit_weight(context.weight(), options, floor, context.scale_dtype());
  if (!weight.ok()) return weight.status().in(context.layer().weight.tensor);
  report(*weight, options, context);
  Solved solved;
  const at::Tensor scale = one_scale ? weight->scale.narrow(0, 0, 1) : weight->scale;
  solved.weight = Quantized{*scheme.weight, weight->codes, scale.to(context.scale_dtype()), {}, {}};
  solved.input_scale = input.scale;
  solved.input_zero = input.zero;
  return solved;
}

}  // namespace slim::sparse
