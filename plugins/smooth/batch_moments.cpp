#include "batch_moments.h"

#include <ATen/ATen.h>

#include <cmath>

namespace slim::smooth {

void BatchMoments::update(const at::Tensor& x) {
  if (x.size(0) == 0) return;
  const at::Tensor values = x.to(at::kFloat);
  const auto [min, max] = at::aminmax(values, 0);
  batches_.push_back({static_cast<double>(x.size(0)), values.sum(0, false, at::kDouble),
                      values.to(at::kDouble).square_().sum(0), min, max});
  tokens += static_cast<double>(x.size(0));
}

void BatchMoments::merge(const Statistic& other, double weight) {
  if (weight == 0) return;
  const auto source = other.clone();  // also when merging with itself
  for (Batch& batch : static_cast<BatchMoments&>(*source).batches_) batches_.push_back(std::move(batch));
  tokens += weight * other.tokens;
}

bool BatchMoments::rescale(const at::Tensor& s) {
  for (Batch& batch : batches_) {
    const at::Tensor divisor = s.to(batch.sum.device());
    batch.sum = batch.sum / divisor;
    batch.sum_square = batch.sum_square / divisor / divisor;
    batch.min = batch.min / divisor;
    batch.max = batch.max / divisor;
  }
  return true;
}

/// Operations replace tensors instead of changing them, so that copies may share them.
std::unique_ptr<Statistic> BatchMoments::clone() const { return std::make_unique<BatchMoments>(*this); }

TensorMap BatchMoments::state() const {
  std::vector<at::Tensor> rows, sums, squares, mins, maxs;
  for (const Batch& batch : batches_) {
    rows.push_back(at::full({1}, batch.rows, at::kDouble));
    sums.push_back(batch.sum);
    squares.push_back(batch.sum_square);
    mins.push_back(batch.min);
    maxs.push_back(batch.max);
  }
  TensorMap state{{"tokens", at::full({1}, tokens, at::kDouble)}};
  if (batches_.empty()) return state;
  state["rows"] = at::cat(rows);
  state["sum"] = at::stack(sums);
  state["sum_square"] = at::stack(squares);
  state["min"] = at::stack(mins);
  state["max"] = at::stack(maxs);
  return state;
}

Status BatchMoments::restore(const TensorMap& state) {
  const auto bad = [](const std::string& key) {
    return Status(Code::kCorrupt, "saved statistic: entry '" + key +
                                      "' is missing, or has another shape or type than this run's");
  };
  batches_.clear();
  const auto seen = state.find("tokens"), rows = state.find("rows");
  if (seen == state.end() || seen->second.numel() != 1) return bad("tokens");
  tokens = seen->second.item<double>();
  if (rows == state.end()) return {};
  const int64_t count = rows->second.numel();
  for (const char* key : {"sum", "sum_square", "min", "max"}) {
    const auto found = state.find(key);
    if (found == state.end() || found->second.sizes() != at::IntArrayRef({count, features_})) return bad(key);
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto entry = [&](const char* key) { return state.find(key)->second[i].clone(); };
    batches_.push_back(
        {rows->second[i].item<double>(), entry("sum"), entry("sum_square"), entry("min"), entry("max")});
  }
  return {};
}

at::Tensor BatchMoments::lowest() const {
  at::Tensor low = batches_.front().min;
  for (const Batch& batch : batches_) low = at::minimum(low, batch.min);
  return low;
}

at::Tensor BatchMoments::highest() const {
  at::Tensor high = batches_.front().max;
  for (const Batch& batch : batches_) high = at::maximum(high, batch.max);
  return high;
}

bool BatchMoments::finite() const {
  return empty() || at::isfinite(lowest()).logical_and_(at::isfinite(highest())).all().item<bool>();
}

at::Tensor BatchMoments::reach() const {
  if (empty()) return at::zeros({features_}, at::kDouble);
  return (highest().to(at::kDouble) - lowest().to(at::kDouble)) / 2;
}

std::pair<double, double> BatchMoments::moments(const Batch& batch, const at::Tensor& shift) {
  const at::Tensor sum = batch.sum - batch.rows * shift;
  const at::Tensor square = batch.sum_square - 2 * shift * batch.sum + batch.rows * shift.square();
  const double count = batch.rows * static_cast<double>(shift.numel());
  const double mean = sum.sum().item<double>() / count;
  const double variance = (square.sum().item<double>() - count * mean * mean) / std::max(1.0, count - 1);
  return {mean, std::sqrt(std::max(0.0, variance))};
}

double BatchMoments::spread() const {
  if (empty()) return 0;
  const at::Tensor shift = (highest().to(at::kDouble) + lowest().to(at::kDouble)) / 2;
  double largest = 0;
  for (const Batch& batch : batches_) largest = std::max(largest, moments(batch, shift).second);
  return largest;
}

bool BatchMoments::has_outlier(double sigmas) const {
  for (const Batch& batch : batches_) {
    const auto [mean, deviation] = moments(batch, at::zeros_like(batch.sum));
    const double farthest =
        std::max(batch.max.max().item<double>() - mean, mean - batch.min.min().item<double>());
    if (farthest > sigmas * deviation) return true;
  }
  return false;
}

}  // namespace slim::smooth
