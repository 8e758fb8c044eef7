#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "slim/histogram.hpp"
#include "slim/statistic.hpp"

namespace slim::sparse {

/// The extremes of every calibration batch, per channel so that they follow a scale exactly, and the spread of the
/// first batches. Fractional after a weighted merge: a batch then counts by its weight.
class BatchExtremes final : public Statistic {
 public:
  static constexpr std::string_view kId = "sparse.batch_extremes";
  static constexpr size_t kFirstBatches = 5;
  explicit BatchExtremes(int64_t features) : features_(features) {}
  /// One batch; without rows it does not count.
  void update(const at::Tensor& x) override;
  void merge(const Statistic& other, double weight) override;
  bool rescale(const at::Tensor& s) override;
  std::unique_ptr<Statistic> clone() const override;
  TensorMap state() const override;
  Status restore(const TensorMap&) override;

  size_t batches() const { return weights_.size(); }
  /// The means of the batches' smallest and largest values (msmodelslim's act_method 1); 0 without a batch. NaN and Inf
  /// pass on.
  ValueRange mean_range() const;
  /// max|x| / std(x) over the first batches (unbiased); 0 without a spread.
  double outlier_ratio() const;

 private:
  int64_t features_;
  std::vector<at::Tensor> min_, max_;  ///< [features] each, in x's dtype until they are rescaled
  std::vector<double> weights_;
  double first_rows_ = 0;
  at::Tensor first_sum_, first_square_, first_peak_;  ///< [features] fp64, of the first batches
};

}  // namespace slim::sparse
