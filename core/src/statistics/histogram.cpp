#include "slim/histogram.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "slim/ops.hpp"
#include "slim/quant.hpp"

namespace slim {
namespace {

constexpr int64_t kHalf = Histogram::kBinsPerSide, kBins = 2 * kHalf;
constexpr int kSmallestExponent = -100;  // 1 / width stays finite in fp32

/// The smallest width 2^k of which kHalf bins hold every |x| <= largest.
int exponent_for(double largest) {
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest < 2^exponent
  constexpr int kHalfExponent = 11;
  static_assert(int64_t{1} << kHalfExponent == kHalf);
  return std::max(exponent - kHalfExponent, kSmallestExponent);
}

/// Bins of width 2^(k + steps): pairs are added, so that zero stays an edge.
at::Tensor coarser(const at::Tensor& counts, int steps) {
  const at::Tensor index =
      at::arange(kBins, at::kLong).sub_(kHalf).bitwise_right_shift(std::min(steps, 62)).add_(kHalf);
  return at::zeros_like(counts).index_add_(0, index, counts);
}

at::Tensor as_tensor(double value) { return at::full({1}, value, at::kDouble); }

}  // namespace

void Histogram::widen(int exponent) {
  if (exponent <= exponent_) return;
  if (exponent_ != kNoExponent)
    counts_ = coarser(counts_, exponent - exponent_);  // without one only zeros were seen
  exponent_ = exponent;
}

void Histogram::update(const at::Tensor& x) {
  if (x.numel() == 0) return;
  tokens += static_cast<double>(x.size(0));
  const int exponent = std::max(exponent_, kSmallestExponent);
  ops::BinCounts seen = ops::histogram(x, exponent, kHalf);
  if (!std::isfinite(seen.min) || !std::isfinite(seen.max)) {
    finite_ = false;
    return;
  }
  if (!counts_.defined()) counts_ = at::zeros({kBins}, at::kDouble);
  if (seen.min != 0 || seen.max != 0) widen(exponent_for(std::max(std::abs(seen.min), std::abs(seen.max))));
  if (exponent_ > exponent)
    seen = ops::histogram(x, exponent_, kHalf);  // the bins were too narrow: rare after the first batch
  counts_.add_(seen.counts);
  include(seen.min, seen.max);
}

void Histogram::include(double min, double max) {
  const bool first = empty();
  min_ = first ? min : std::min(min_, min);
  max_ = first ? max : std::max(max_, max);
}

void Histogram::merge(const Statistic& other, double weight) {
  const auto& source = static_cast<const Histogram&>(other);
  tokens += weight * source.tokens;
  if (weight == 0) return;
  finite_ = finite_ && source.finite_;
  if (source.empty()) return;
  if (!counts_.defined()) counts_ = at::zeros({kBins}, at::kDouble);
  widen(source.exponent_);
  const bool coarsen = source.exponent_ != kNoExponent && source.exponent_ < exponent_;
  counts_.add_(coarsen ? coarser(source.counts_, exponent_ - source.exponent_) : source.counts_, weight);
  include(source.min_, source.max_);
}

bool Histogram::rescale(const at::Tensor& s) {
  if (empty()) return true;
  const double factor = s.min().item<double>();
  int exponent = 0;
  if (s.max().item<double>() != factor || std::frexp(factor, &exponent) != 0.5) return false;
  const int shifted = exponent_ - (exponent - 1);
  if (exponent_ != kNoExponent) {
    if (shifted < kSmallestExponent) return false;
    exponent_ = shifted;
  }
  min_ /= factor;
  max_ /= factor;
  return true;
}

std::unique_ptr<Statistic> Histogram::clone() const {
  auto copy = std::make_unique<Histogram>(*this);
  if (counts_.defined()) copy->counts_ = counts_.clone();
  return copy;
}

TensorMap Histogram::state() const {
  TensorMap state{{"tokens", as_tensor(tokens)}, {"finite", as_tensor(finite_ ? 1 : 0)}};
  if (empty()) return state;
  state["counts"] = counts_;
  state["range"] = at::tensor({min_, max_}, at::kDouble);
  state["exponent"] = as_tensor(exponent_);
  return state;
}

Status Histogram::restore(const TensorMap& state) {
  const auto entry = [&](const char* key, int64_t size) {
    const auto found = state.find(key);
    const bool fits = found != state.end() && found->second.scalar_type() == at::kDouble &&
                      found->second.dim() == 1 && found->second.size(0) == size;
    return fits ? found->second.to(at::kCPU).clone() : at::Tensor();
  };
  const auto damaged = [](const char* key) {
    return Status(Code::kCorrupt, std::string("saved statistic: entry '") + key +
                                      "' is missing, or has another shape or type than this run's");
  };
  *this = Histogram();
  const at::Tensor seen = entry("tokens", 1), finite = entry("finite", 1);
  if (!seen.defined()) return damaged("tokens");
  if (!finite.defined()) return damaged("finite");
  tokens = seen.item<double>();
  finite_ = finite.item<double>() != 0;
  if (!state.contains("counts")) return {};
  const at::Tensor counts = entry("counts", kBins), range = entry("range", 2),
                   exponent = entry("exponent", 1);
  if (!counts.defined()) return damaged("counts");
  if (!range.defined()) return damaged("range");
  if (!exponent.defined()) return damaged("exponent");
  counts_ = counts;
  min_ = range[0].item<double>();
  max_ = range[1].item<double>();
  exponent_ = exponent.item<int>();
  return {};
}

at::Tensor Histogram::counts() const { return counts_.defined() ? counts_ : at::zeros({kBins}, at::kDouble); }

double Histogram::width() const { return std::ldexp(1.0, std::max(exponent_, kSmallestExponent)); }

namespace quant {
namespace {

ValueRange extremes(const Histogram& histogram) { return {histogram.min(), histogram.max()}; }

/// The occupied bins, with plain numbers.
struct Bins {
  explicit Bins(const Histogram& histogram) : width(histogram.width()) {
    const at::Tensor all = histogram.counts();
    const auto* data = all.const_data_ptr<double>();
    int64_t first = 0, last = all.size(0);
    while (last > first && data[last - 1] == 0) --last;
    while (first < last && data[first] == 0) ++first;
    counts.assign(data + first, data + last);
    begin = static_cast<double>(first - kHalf) * width;
    for (const double count : counts) total += count;
  }
  double edge(int64_t bin) const { return begin + static_cast<double>(bin) * width; }
  int64_t size() const { return static_cast<int64_t>(counts.size()); }

  std::vector<double> counts;
  double width, begin, total = 0;
};

/// The value below which `share` of the counts lie.
double quantile(const std::vector<double>& counts, double begin, double width, double share) {
  double total = 0, sum = 0;
  for (const double count : counts) total += count;
  const double wanted = share * total;
  for (size_t bin = 0; bin < counts.size(); ++bin) {
    if (counts[bin] > 0 && sum + counts[bin] >= wanted) {
      return begin + (static_cast<double>(bin) + (wanted - sum) / counts[bin]) * width;
    }
    sum += counts[bin];
  }
  return begin + static_cast<double>(counts.size()) * width;
}

/// Counts of |x|: a bin below zero and its mirror image.
std::vector<double> absolute_counts(const Histogram& histogram) {
  const at::Tensor all = histogram.counts();
  const at::Tensor folded = all.narrow(0, kHalf, kHalf) + all.narrow(0, 0, kHalf).flip(0);
  const auto* data = folded.const_data_ptr<double>();
  return {data, data + kHalf};
}

/// ∫ from a to b of density * t² dt.
double second_moment(double a, double b, double density) { return density * (b * b * b - a * a * a) / 3; }

/// Error of the values of one bin [begin, end), relative to the range's low end, rounded to centres of steps.
double bin_error(double begin, double end, double density, double step, int64_t levels) {
  const auto step_of = [&](double x) {
    return std::clamp(std::floor(x / step), 0.0, static_cast<double>(levels - 1));
  };
  const double first = step_of(begin), last = step_of(end), half = step / 2;
  const double whole = second_moment(-half, half, density);
  return second_moment(begin - (first * step + half), half, density) + (last - first - 1) * whole +
         second_moment(-half, end - (last * step + half), density);
}

/// Σ over bins of the L2 error when the bins [first, last] are the range.
double spread_error(const Bins& bins, double low, double high, int64_t levels) {
  const double step = (high - low) / static_cast<double>(levels);
  if (step <= 0) return 0;
  double error = 0;
  for (int64_t bin = 0; bin < bins.size(); ++bin) {
    if (bins.counts[bin] == 0) continue;
    error += bin_error(bins.edge(bin) - low, bins.edge(bin + 1) - low, bins.counts[bin] / bins.width, step,
                       levels);
  }
  return error;
}

/// Σ counts (x̂ - x)² over the bin centres.
class CentreError {
 public:
  CentreError(const Histogram& histogram, const QuantArgs& args) : args_(args) {
    const Bins bins(histogram);
    counts_ = at::tensor(bins.counts, at::kDouble);
    centres_ =
        at::arange(bins.size(), at::kDouble).add_(0.5).mul_(bins.width).add_(bins.begin).to(at::kFloat);
    centres_.clamp_(histogram.min(), histogram.max());
  }
  double operator()(const ValueRange& range) const {
    const auto bound = [](double value) { return at::full({1}, value, at::kFloat); };
    const Params params = params_from_range(bound(range.low), bound(range.high), args_, at::kFloat);
    const at::Tensor rounded = fake_quantize_activation(centres_, args_, params.scale, params.zero);
    return (rounded - centres_).to(at::kDouble).square_().mul_(counts_).sum().item<double>();
  }

 private:
  QuantArgs args_;
  at::Tensor counts_, centres_;
};

/// The best range so far, and tries of others in equal steps. The ends of a range never leave the extremes.
class RangeSearch {
 public:
  RangeSearch(const Histogram& histogram, const QuantArgs& args)
      : error_(histogram, args), all_(extremes(histogram)), best_(all_), best_error_(error_(all_)) {}

  /// Multiplies the ends by factors of [from, to].
  void scale(bool low, bool high, double from, double to, int steps) {
    const ValueRange start = best_;
    for (int i = 0; i <= steps; ++i) {
      const double factor = from + (to - from) * i / steps;
      attempt({low ? std::clamp(start.low * factor, all_.low, all_.high) : start.low,
               high ? std::clamp(start.high * factor, all_.low, all_.high) : start.high});
    }
  }
  const ValueRange& best() const { return best_; }

 private:
  void attempt(const ValueRange& range) {
    const double error = error_(range);
    if (error >= best_error_) return;
    best_error_ = error;
    best_ = range;
  }

  CentreError error_;
  ValueRange all_, best_;
  double best_error_;
};

}  // namespace

ValueRange percentile_range(const Histogram& histogram, double percent, bool symmetric) {
  const ValueRange all = extremes(histogram);
  const double outside = (100 - percent) / 100;
  if (symmetric) {
    const double bound = std::min(quantile(absolute_counts(histogram), 0, histogram.width(), 1 - outside),
                                  std::max(-all.low, all.high));
    return {-bound, bound};
  }
  const Bins bins(histogram);
  return {std::clamp(quantile(bins.counts, bins.begin, bins.width, outside / 2), all.low, all.high),
          std::clamp(quantile(bins.counts, bins.begin, bins.width, 1 - outside / 2), all.low, all.high)};
}

ValueRange least_squares_range(const Histogram& histogram, const QuantArgs& args) {
  if (!(histogram.min() < histogram.max())) return extremes(histogram);
  constexpr double kSmallest = 0.05, kNear = 0.03;
  constexpr int kCoarse = 95, kFine = 30;
  RangeSearch search(histogram, args);
  search.scale(true, true, kSmallest, 1, kCoarse);
  if (!args.symmetric) {
    search.scale(true, false, kSmallest, 1, kCoarse);
    search.scale(false, true, kSmallest, 1, kCoarse);
    search.scale(true, false, 1 - kNear, 1 + kNear, kFine);
    search.scale(false, true, 1 - kNear, 1 + kNear, kFine);
  }
  search.scale(true, true, 1 - kNear, 1 + kNear, kFine);
  return search.best();
}

ValueRange quantile_stepping_range(const Histogram& histogram, int64_t levels) {
  const Bins bins(histogram);
  if (bins.size() == 0) return extremes(histogram);
  constexpr double kStep = 1e-5;
  std::vector<double> up_to(bins.counts.size());
  double sum = 0;
  for (size_t bin = 0; bin < up_to.size(); ++bin) up_to[bin] = sum += bins.counts[bin];
  int64_t first = 0, last = bins.size() - 1;
  double alpha = 0, beta = 1, least = std::numeric_limits<double>::infinity();
  while (alpha < beta) {
    const double next_alpha = alpha + kStep, next_beta = beta - kStep;
    int64_t left = first, right = last;
    while (left < last && up_to[left] < next_alpha * bins.total) ++left;
    while (right > first && up_to[right] > next_beta * bins.total) --right;
    const bool from_left = left - first > last - right;
    (from_left ? alpha : beta) = from_left ? next_alpha : next_beta;
    const int64_t next_first = from_left ? left : first, next_last = from_left ? last : right;
    if (next_first == first && next_last == last) continue;
    const double error = spread_error(bins, bins.edge(next_first), bins.edge(next_last + 1), levels);
    if (error > least) break;
    least = error;
    first = next_first;
    last = next_last;
  }
  return {std::max(bins.edge(first), histogram.min()), std::min(bins.edge(last + 1), histogram.max())};
}

double spread_error(const Histogram& histogram, const ValueRange& range, int64_t levels) {
  const Bins bins(histogram);
  return bins.total > 0 ? spread_error(bins, range.low, range.high, levels) / bins.total : 0;
}

}  // namespace quant
}  // namespace slim
