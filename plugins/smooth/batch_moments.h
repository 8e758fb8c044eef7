#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "slim/statistic.hpp"

namespace slim::smooth {

/// Sums of x and x² and the extremes of every channel, of each calibration batch apart: what Outlier Suppression+ asks of its
/// input, computed when all batches are known. 24 bytes a channel and batch.
class BatchMoments final : public Statistic {
 public:
  static constexpr std::string_view kId = "smooth.batch_moments";
  explicit BatchMoments(int64_t features) : features_(features) {}
  void update(const at::Tensor& x) override;
  /// Takes the other's batches over as they are; weight 0 takes none.
  void merge(const Statistic& other, double weight) override;
  bool rescale(const at::Tensor& s) override;
  std::unique_ptr<Statistic> clone() const override;
  TensorMap state() const override;
  Status restore(const TensorMap&) override;

  bool empty() const { return batches_.empty(); }
  bool finite() const;
  /// max |x - shift| per channel where shift is the middle of the channel's extremes: [features] fp64.
  at::Tensor reach() const;
  /// The largest over batches of the standard deviation of x - shift, over all elements of the batch.
  double spread() const;
  /// True if in any batch a value lies more than `sigmas` standard deviations from the batch's mean.
  bool has_outlier(double sigmas) const;

 private:
  struct Batch {
    double rows = 0;
    at::Tensor sum, sum_square;  // fp64 [features]
    at::Tensor min, max;         // fp32 [features]
  };
  at::Tensor lowest() const;
  at::Tensor highest() const;
  /// Mean and standard deviation of x - shift over a batch.
  static std::pair<double, double> moments(const Batch&, const at::Tensor& shift);

  int64_t features_;
  std::vector<Batch> batches_;
};

}  // namespace slim::smooth
