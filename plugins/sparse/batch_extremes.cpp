#include "batch_extremes.h"

#include <ATen/ATen.h>

#include <cmath>

namespace slim::sparse {
namespace {

at::Tensor stacked(const std::vector<at::Tensor>& rows, int64_t features) {
  if (rows.empty()) return at::zeros({0, features});
  std::vector<at::Tensor> wide;
  for (const at::Tensor& row : rows) wide.push_back(row.to(at::kFloat));
  return at::stack(wide);
}

Result<at::Tensor> saved(const TensorMap& state, std::string_view key, std::vector<int64_t> shape,
                         at::ScalarType dtype) {
  const auto found = state.find(key);
  if (found == state.end() || found->second.scalar_type() != dtype ||
      found->second.sizes() != at::IntArrayRef(shape)) {
    return Status(Code::kCorrupt, "saved statistic: entry '" + std::string(key) +
                                      "' is missing, or has another shape or type than this run's");
  }
  return found->second.clone();
}

}  // namespace

void BatchExtremes::update(const at::Tensor& x) {
  if (x.size(0) == 0) return;
  const auto [low, high] = at::aminmax(x, 0);
  if (weights_.size() < kFirstBatches) {
    const at::Tensor wide = x.to(at::kDouble);
    const at::Tensor sum = wide.sum(0), square = wide.square().sum(0),
                     peak = at::maximum(low.neg(), high).to(at::kDouble);
    first_sum_ = first_sum_.defined() ? first_sum_ + sum : sum;
    first_square_ = first_square_.defined() ? first_square_ + square : square;
    first_peak_ = first_peak_.defined() ? at::maximum(first_peak_, peak) : peak;
    first_rows_ += static_cast<double>(x.size(0));
  }
  min_.push_back(low);
  max_.push_back(high);
  weights_.push_back(1);
  tokens += static_cast<double>(x.size(0));
}

void BatchExtremes::merge(const Statistic& other, double weight) {
  const auto& source = static_cast<const BatchExtremes&>(other);
  tokens += weight * source.tokens;
  if (weight == 0 || source.weights_.empty()) return;
  min_.insert(min_.end(), source.min_.begin(), source.min_.end());
  max_.insert(max_.end(), source.max_.begin(), source.max_.end());
  for (const double theirs : source.weights_) weights_.push_back(weight * theirs);
  first_sum_ = first_sum_.defined() ? first_sum_ + source.first_sum_ * weight : source.first_sum_ * weight;
  first_square_ =
      first_square_.defined() ? first_square_ + source.first_square_ * weight : source.first_square_ * weight;
  first_peak_ =
      first_peak_.defined() ? at::maximum(first_peak_, source.first_peak_) : source.first_peak_.clone();
  first_rows_ += weight * source.first_rows_;
}

bool BatchExtremes::rescale(const at::Tensor& s) {
  for (auto* rows : {&min_, &max_}) {
    for (at::Tensor& row : *rows) row = row.to(at::kFloat) / s.to(row.device());
  }
  if (!first_sum_.defined()) return true;
  const at::Tensor divisor = s.to(first_sum_.device(), at::kDouble);
  first_sum_ = first_sum_ / divisor;
  first_square_ = first_square_ / divisor.square();
  first_peak_ = first_peak_ / divisor;
  return true;
}

std::unique_ptr<Statistic> BatchExtremes::clone() const {
  return std::make_unique<BatchExtremes>(*this);  // nothing writes into a tensor: they may be shared
}

TensorMap BatchExtremes::state() const {
  TensorMap state{{"tokens", at::full({1}, tokens, at::kDouble)},
                  {"min", stacked(min_, features_)},
                  {"max", stacked(max_, features_)},
                  {"weights", at::tensor(weights_, at::kDouble)},
                  {"first_rows", at::full({1}, first_rows_, at::kDouble)}};
  if (first_sum_.defined()) {
    state["first_sum"] = first_sum_;
    state["first_square"] = first_square_;
    state["first_peak"] = first_peak_;
  }
  return state;
}

Status BatchExtremes::restore(const TensorMap& state) {
  SLIM_ASSIGN(const at::Tensor count, saved(state, "tokens", {1}, at::kDouble));
  SLIM_ASSIGN(const at::Tensor rows, saved(state, "first_rows", {1}, at::kDouble));
  const auto weights = state.find("weights");
  const int64_t batches = weights != state.end() && weights->second.dim() == 1 ? weights->second.size(0) : 0;
  SLIM_ASSIGN(const at::Tensor each, saved(state, "weights", {batches}, at::kDouble));
  SLIM_ASSIGN(const at::Tensor low, saved(state, "min", {batches, features_}, at::kFloat));
  SLIM_ASSIGN(const at::Tensor high, saved(state, "max", {batches, features_}, at::kFloat));
  *this = BatchExtremes(features_);
  if (batches > 0) {
    SLIM_ASSIGN(first_sum_, saved(state, "first_sum", {features_}, at::kDouble));
    SLIM_ASSIGN(first_square_, saved(state, "first_square", {features_}, at::kDouble));
    SLIM_ASSIGN(first_peak_, saved(state, "first_peak", {features_}, at::kDouble));
  }
  tokens = count.item<double>();
  first_rows_ = rows.item<double>();
  for (int64_t i = 0; i < batches; ++i) {
    min_.push_back(low[i]);
    max_.push_back(high[i]);
    weights_.push_back(each[i].item<double>());
  }
  return {};
}

ValueRange BatchExtremes::mean_range() const {
  if (weights_.empty()) return {};
  const at::Tensor weight = at::tensor(weights_, at::kDouble);
  const at::Tensor low = stacked(min_, features_).amin(1).to(at::kCPU, at::kDouble);
  const at::Tensor high = stacked(max_, features_).amax(1).to(at::kCPU, at::kDouble);
  const double total = weight.sum().item<double>();
  return {(low * weight).sum().item<double>() / total, (high * weight).sum().item<double>() / total};
}

double BatchExtremes::outlier_ratio() const {
  const double count = first_rows_ * static_cast<double>(features_);
  if (count <= 1) return 0;
  const double sum = first_sum_.sum().item<double>(), square = first_square_.sum().item<double>();
  const double variance = (square - sum * sum / count) / (count - 1);
  return variance > 0 ? first_peak_.max().item<double>() / std::sqrt(variance) : 0;
}

}  // namespace slim::sparse
