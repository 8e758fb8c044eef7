#include "slim/statistic.hpp"

#include <ATen/ATen.h>

#include "slim/ops.hpp"

namespace slim {
namespace {

at::Tensor scalar(double value) { return at::full({1}, value, at::kDouble); }

/// The entry of a saved state, of this shape (-1: any size) and dtype.
Result<at::Tensor> entry(const TensorMap& state, std::string_view key, std::vector<int64_t> shape,
                         std::optional<at::ScalarType> dtype) {
  const auto found = state.find(key);
  if (found == state.end()) {
    return Status(Code::kCorrupt, "saved statistic: entry '" + std::string(key) + "' is missing");
  }
  const at::Tensor& tensor = found->second;
  bool fits =
      tensor.dim() == static_cast<int64_t>(shape.size()) && (!dtype || tensor.scalar_type() == *dtype);
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || tensor.size(static_cast<int64_t>(i)) == shape[i];
  }
  if (!fits) {
    return Status(Code::kCorrupt, "saved statistic: entry '" + std::string(key) +
                                      "' has another shape or type than this run's");
  }
  return tensor.clone();
}

Status restore_tokens(const TensorMap& state, double& tokens) {
  SLIM_ASSIGN(const at::Tensor saved, entry(state, "tokens", {1}, at::kDouble));
  tokens = saved.item<double>();
  return {};
}

at::Tensor divided_by_tokens(const at::Tensor& sum, int64_t features, double tokens) {
  if (!sum.defined()) return at::zeros({features});
  return tokens > 0 ? sum / tokens : at::zeros_like(sum);
}

}  // namespace

// ---- Gram -------------------------------------------------------------------------------------------------------------

void Gram::update(const at::Tensor& x) {
  if (!sum_.defined()) sum_ = at::zeros({features_, features_}, x.options().dtype(at::kFloat));
  if (x.size(0) == 0) return;
  ops::gram_(sum_, x);
  mirrored_ = false;
  tokens += static_cast<double>(x.size(0));
}

const at::Tensor& Gram::sum() const {
  if (!std::exchange(mirrored_, true)) ops::mirror_upper_(sum_);
  return sum_;
}

void Gram::merge(const Statistic& other, double weight) {
  const auto& gram = static_cast<const Gram&>(other);
  tokens += weight * gram.tokens;
  if (!gram.sum_.defined()) return;
  if (!sum_.defined()) sum_ = at::zeros_like(gram.sum_);
  sum_.add_(gram.sum_.to(sum_.device()), weight);
  mirrored_ = mirrored_ && gram.mirrored_;
}

bool Gram::rescale(const at::Tensor& s) {
  if (sum_.defined()) sum_.div_(s.to(sum_.device()).unsqueeze(0)).div_(s.to(sum_.device()).unsqueeze(1));
  return true;
}

std::unique_ptr<Statistic> Gram::clone() const {
  auto copy = std::make_unique<Gram>(*this);
  if (sum_.defined()) copy->sum_ = sum_.clone();
  return copy;
}

TensorMap Gram::state() const {
  TensorMap state{{"tokens", scalar(tokens)}};
  if (sum_.defined()) state["sum"] = sum();
  return state;
}

Status Gram::restore(const TensorMap& state) {
  SLIM_TRY(restore_tokens(state, tokens));
  sum_ = at::Tensor();
  mirrored_ = true;
  if (tokens == 0 && !state.contains("sum")) return {};
  SLIM_ASSIGN(sum_, entry(state, "sum", {features_, features_}, at::kFloat));
  return {};
}

at::Tensor Gram::mean() const {
  if (!sum_.defined()) return at::zeros({features_, features_});
  return tokens > 0 ? sum() / tokens : at::zeros_like(sum_);
}

// ---- ChannelMoments ---------------------------------------------------------------------------------------------------

void ChannelMoments::update(const at::Tensor& x) {
  if (x.size(0) == 0) return;
  if (!sum_abs_.defined()) {
    const auto options = x.options().dtype(at::kFloat);
    sum_abs_ = at::zeros({features_}, options);
    sum_square_ = at::zeros({features_}, options);
    min_ = at::full({features_}, std::numeric_limits<float>::infinity(), options);
    max_ = at::full({features_}, -std::numeric_limits<float>::infinity(), options);
  }
  ops::channel_moments_(sum_abs_, sum_square_, min_, max_, x);
  tokens += static_cast<double>(x.size(0));
}

void ChannelMoments::merge(const Statistic& other, double weight) {
  const auto& moments = static_cast<const ChannelMoments&>(other);
  tokens += weight * moments.tokens;
  if (!moments.sum_abs_.defined() || weight == 0) return;
  if (!sum_abs_.defined()) {
    sum_abs_ = moments.sum_abs_ * weight;
    sum_square_ = moments.sum_square_ * weight;
    min_ = moments.min_.clone();
    max_ = moments.max_.clone();
    return;
  }
  const auto device = sum_abs_.device();
  sum_abs_.add_(moments.sum_abs_.to(device), weight);
  sum_square_.add_(moments.sum_square_.to(device), weight);
  min_ = at::minimum(min_, moments.min_.to(device));
  max_ = at::maximum(max_, moments.max_.to(device));
}

bool ChannelMoments::rescale(const at::Tensor& s) {
  if (!sum_abs_.defined()) return true;
  const at::Tensor divisor = s.to(sum_abs_.device());
  sum_abs_.div_(divisor);
  sum_square_.div_(divisor).div_(divisor);
  min_.div_(divisor);
  max_.div_(divisor);
  return true;
}

std::unique_ptr<Statistic> ChannelMoments::clone() const {
  auto copy = std::make_unique<ChannelMoments>(*this);
  for (at::Tensor* tensor : {&copy->sum_abs_, &copy->sum_square_, &copy->min_, &copy->max_}) {
    if (tensor->defined()) *tensor = tensor->clone();
  }
  return copy;
}

TensorMap ChannelMoments::state() const {
  TensorMap state{{"tokens", scalar(tokens)}};
  if (sum_abs_.defined()) {
    state["sum_abs"] = sum_abs_;
    state["sum_square"] = sum_square_;
    state["min"] = min_;
    state["max"] = max_;
  }
  return state;
}

Status ChannelMoments::restore(const TensorMap& state) {
  SLIM_TRY(restore_tokens(state, tokens));
  sum_abs_ = sum_square_ = min_ = max_ = at::Tensor();
  if (tokens == 0 && !state.contains("sum_abs")) return {};
  SLIM_ASSIGN(sum_abs_, entry(state, "sum_abs", {features_}, at::kFloat));
  SLIM_ASSIGN(sum_square_, entry(state, "sum_square", {features_}, at::kFloat));
  SLIM_ASSIGN(min_, entry(state, "min", {features_}, at::kFloat));
  SLIM_ASSIGN(max_, entry(state, "max", {features_}, at::kFloat));
  return {};
}

at::Tensor ChannelMoments::mean_abs() const { return divided_by_tokens(sum_abs_, features_, tokens); }
at::Tensor ChannelMoments::mean_square() const { return divided_by_tokens(sum_square_, features_, tokens); }
at::Tensor ChannelMoments::min() const { return min_.defined() ? min_ : at::zeros({features_}); }
at::Tensor ChannelMoments::max() const { return max_.defined() ? max_ : at::zeros({features_}); }
at::Tensor ChannelMoments::abs_max() const { return at::maximum(min().neg(), max()); }

// ---- ActivationRows ---------------------------------------------------------------------------------------------------
//
// Token t is kept when t is a multiple of the stride; the stride doubles whenever more than `capacity` tokens are kept. What is
// kept thus depends on the tokens alone, not on how they were batched.

namespace {
int64_t rows_in(const std::vector<at::Tensor>& chunks) {
  int64_t rows = 0;
  for (const at::Tensor& chunk : chunks) rows += chunk.size(0);
  return rows;
}

at::Tensor every(const at::Tensor& rows, int64_t stride) {
  return rows.slice(0, 0, rows.size(0), stride).contiguous();
}
}  // namespace

void ActivationRows::update(const at::Tensor& x) {
  const int64_t first = (stride_ - seen_ % stride_) % stride_;
  seen_ += x.size(0);
  tokens += static_cast<double>(x.size(0));
  if (first < x.size(0)) {
    // A copy even with stride 1: x belongs to the caller's forward pass.
    chunks_.push_back(x.slice(0, first, x.size(0), stride_).clone(at::MemoryFormat::Contiguous));
  }
  while (capacity_ > 0 && rows_in(chunks_) > capacity_) {
    chunks_ = {every(rows(), 2)};
    stride_ *= 2;
  }
}

void ActivationRows::merge(const Statistic& other, double weight) {
  const auto& source = static_cast<const ActivationRows&>(other);
  const double added_tokens = weight * source.tokens;
  if (added_tokens <= 0) return;
  at::Tensor theirs = source.rows();
  at::Tensor mine = chunks_.empty() ? theirs.narrow(0, 0, 0) : rows();
  theirs = theirs.to(mine.device());
  const double total = tokens + added_tokens;
  const auto kept = static_cast<double>(mine.size(0) + theirs.size(0));
  // Each side is scaled so that the mean of x xᵀ over the kept rows stays that of all tokens with their weights.
  const auto balanced = [&](const at::Tensor& rows, double share) {
    if (rows.size(0) == 0) return rows;
    const double factor = share / total * kept / static_cast<double>(rows.size(0));
    return std::abs(factor - 1) < 1e-12 ? rows : rows.to(at::kFloat) * std::sqrt(factor);
  };
  mine = balanced(mine, tokens);
  theirs = balanced(theirs, added_tokens);
  at::Tensor all = at::cat({mine, theirs});
  tokens = total;
  seen_ += source.seen_;
  stride_ = std::max(stride_, source.stride_);
  while (capacity_ > 0 && all.size(0) > capacity_) {
    all = every(all, 2);
    stride_ *= 2;
  }
  chunks_ = {all};
}

bool ActivationRows::rescale(const at::Tensor& s) {
  if (chunks_.empty()) return true;
  const at::Tensor all = rows();
  chunks_ = {all.to(at::kFloat) / s.to(all.device())};  // fp32: a 16-bit quotient would not be exact
  return true;
}

std::unique_ptr<Statistic> ActivationRows::clone() const {
  auto copy = std::make_unique<ActivationRows>(*this);
  if (!chunks_.empty()) copy->chunks_ = {rows().clone()};
  return copy;
}

TensorMap ActivationRows::state() const {
  TensorMap state{{"tokens", scalar(tokens)},
                  {"stride", at::full({1}, stride_, at::kLong)},
                  {"seen", at::full({1}, seen_, at::kLong)}};
  if (!chunks_.empty()) state["rows"] = rows();
  return state;
}

Status ActivationRows::restore(const TensorMap& state) {
  SLIM_TRY(restore_tokens(state, tokens));
  SLIM_ASSIGN(const at::Tensor stride, entry(state, "stride", {1}, at::kLong));
  SLIM_ASSIGN(const at::Tensor seen, entry(state, "seen", {1}, at::kLong));
  stride_ = std::max<int64_t>(1, stride.item<int64_t>());
  seen_ = seen.item<int64_t>();
  chunks_.clear();
  if (seen_ == 0 && !state.contains("rows")) return {};
  SLIM_ASSIGN(const at::Tensor saved, entry(state, "rows", {-1, features_}, std::nullopt));
  chunks_.push_back(saved);
  return {};
}

at::Tensor ActivationRows::rows() const {
  if (chunks_.empty()) return at::zeros({0, features_});
  return chunks_.size() == 1 ? chunks_[0] : at::cat(chunks_);
}

}  // namespace slim
