#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "slim/scheme.hpp"
#include "slim/statistic.hpp"

namespace slim {

/// The interval that the codes of a static activation span.
struct ValueRange {
  double low = 0;   ///< its smallest value
  double high = 0;  ///< its largest value
};

/// Counts of all values of a port, whatever their channel, and their exact extremes. Bins are 2^k wide and start at multiples of
/// 2^k; k grows with the largest |x| and pairs of bins are added together: nothing is interpolated, so that batches,
/// merged runs and resumed runs give the same counts in any order. Between a half and all of the bins of the side of the largest |x|
/// are in use, which is at least the resolution of PyTorch's HistogramObserver with 2048 bins.
class SLIM_API Histogram final : public Statistic {
 public:
  static constexpr std::string_view kId = "slim.histogram";  ///< for find()
  static constexpr int64_t kBinsPerSide = 2048;  ///< below zero, and above
  Histogram() = default;
  /// NaN and Inf are not counted: they make finite() false.
  void update(const at::Tensor& x) override;
  void merge(const Statistic& other, double weight) override;
  /// Channels are not kept apart: exact for a scale of equal entries that are a power of two, else false.
  bool rescale(const at::Tensor& s) override;
  std::unique_ptr<Statistic> clone() const override;
  TensorMap state() const override;
  Status restore(const TensorMap&) override;

  /// Counts fp64 [2 * kBinsPerSide] on the CPU (fractional after a weighted merge); bin i holds the values of
  /// [(i - kBinsPerSide) * width(), (i + 1 - kBinsPerSide) * width()).
  at::Tensor counts() const;
  double width() const;                           ///< of a bin; a power of two
  bool finite() const { return finite_; }         ///< neither NaN nor Inf was seen
  bool empty() const { return !(min_ <= max_); }  ///< no value was seen
  /// Exact; 0 when no value was seen.
  double min() const { return empty() ? 0 : min_; }
  double max() const { return empty() ? 0 : max_; }  ///< exact; 0 when no value was seen

 private:
  void widen(int exponent);
  void include(double min, double max);

  int exponent_ = kNoExponent;  ///< width is 2^exponent_; kNoExponent: only zeros so far
  static constexpr int kNoExponent = -1000;
  at::Tensor counts_;
  double min_ = 1, max_ = 0;
  bool finite_ = true;
};

namespace quant {

/// Leaves out the share (100 - percent) % of the values: of |x| (low = -high) when `symmetric`, else half of it at each
/// end. Linear inside a bin; never wider than the extremes. percent in (0, 100].
SLIM_API ValueRange percentile_range(const Histogram&, double percent, bool symmetric);

/// The range inside the extremes of least Σ (x̂ - x)², over the histogram's bin centres and with the very rounding of the engine
/// (fake_quantize_activation with fp32 scales); int8 with and without zero point, and E4M3. `args` is a static per-tensor
/// activation. Never worse than the extremes.
SLIM_API ValueRange least_squares_range(const Histogram&, const QuantArgs& args);

/// The range that PyTorch's HistogramObserver finds: quantiles are stepped inwards at the end that loses fewer values until the
/// L2 error, for values spread evenly in their bins and `levels` output values, grows.
SLIM_API ValueRange quantile_stepping_range(const Histogram&, int64_t levels = 256);

/// The L2 error that quantile_stepping_range() minimises, for one range, per value.
SLIM_API double spread_error(const Histogram&, const ValueRange&, int64_t levels = 256);

}  // namespace quant
}  // namespace slim
