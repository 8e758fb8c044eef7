#include "statistics/statistic_set.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "slim/phase.hpp"
#include "util/device_moves.h"

namespace slim {
namespace {

/// Rows of x [tokens, features] divided by their root mean square, in x's dtype. A row of zeros stays; one whose squares fp32 cannot
/// hold becomes NaN, which whoever uses the statistic names.
at::Tensor normalized(const at::Tensor& x) {
  constexpr int64_t kRows = 256;  // in fp32 at a time
  constexpr double kLeast = 1e-12;
  at::Tensor result = at::empty_like(x);
  for (int64_t begin = 0; begin < x.size(0); begin += kRows) {
    const int64_t rows = std::min(kRows, x.size(0) - begin);
    const at::Tensor part = x.narrow(0, begin, rows).to(at::kFloat);
    const at::Tensor energy = part.square().mean(1, /*keepdim=*/true);
    energy.masked_fill_(energy.isinf(), std::numeric_limits<double>::quiet_NaN());
    result.narrow(0, begin, rows).copy_(part / energy.sqrt_().clamp_min_(kLeast));
  }
  return result;
}

}  // namespace

void StatisticSet::add(PortId port, std::string_view id, std::function<std::unique_ptr<Statistic>()> make) {
  const Key key{port, std::string(id)};
  auto& slot = statistics_[key];
  if (!slot) {
    slot = make();
    makers_[key] = make;
  }
  const PortId parent = block_.ports.at(port).parent;
  if (parent >= 0) add(parent, id, std::move(make));
}

std::unique_ptr<StatisticSet> StatisticSet::clone() const {
  auto copy = std::make_unique<StatisticSet>(block_, expected_tokens_, normalize_tokens_);
  for (const auto& [key, statistic] : statistics_) copy->statistics_[key] = statistic->clone();
  copy->makers_ = makers_;
  copy->stale_ = stale_;
  copy->prior_tokens_ = prior_tokens_;
  copy->tokens_ = tokens_;
  copy->regions_ = regions_;
  return copy;
}

Result<std::unique_ptr<StatisticSet>> StatisticSet::copied(PortId port, at::Device device) const {
  auto copy = std::make_unique<StatisticSet>(block_, expected_tokens_, normalize_tokens_);
  for (const auto& [key, statistic] : statistics_) {
    if (key.first != port) continue;
    const Make& make = makers_.at(key);
    copy->makers_[key] = make;
    auto& other = copy->statistics_[key] = make();
    SLIM_TRY(other->restore(moved(statistic->state(), device)));
    if (stale_.contains(key)) copy->stale_.insert(key);
  }
  return copy;
}

Status StatisticSet::for_each(
    const std::function<Status(const Port&, const std::string& id, Statistic&)>& visit) {
  for (auto& [key, statistic] : statistics_)
    SLIM_TRY(visit(block_.ports.at(key.first), key.second, *statistic));
  return {};
}

void StatisticSet::update(PortId port, const at::Tensor& x) {
  const PhaseTimer timer(Phase::kStatistics);
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  at::Tensor alike;
  for (auto it = statistics_.lower_bound({port, ""}); it != statistics_.end() && it->first.first == port;
       ++it) {
    const bool normalize = normalize_tokens_ && it->second->normalizes_tokens();
    if (normalize && !alike.defined()) alike = normalized(rows);
    it->second->update(normalize ? alike : rows);
  }
}

void StatisticSet::finish(double prior_tokens) {
  prior_tokens_ = prior_tokens;
  for (auto& [key, statistic] : statistics_) {
    const Port& port = block_.ports.at(key.first);
    if (port.parent >= 0 && block_.ports.at(port.parent).pooled) {
      statistics_.at({port.parent, key.second})->merge(*statistic, 1.0);
    }
  }
  for (const auto& [key, statistic] : statistics_) tokens_[key.first] = statistic->tokens;
  for (auto& [key, statistic] : statistics_) {
    const Port& port = block_.ports.at(key.first);
    if (port.parent < 0) continue;
    const Statistic& layer = *statistics_.at({port.parent, key.second});
    if (layer.tokens > 0) statistic->merge(layer, prior_tokens / layer.tokens);
  }
}

const Statistic* StatisticSet::find(PortId port, std::string_view id) const {
  const Key key{port, std::string(id)};
  const auto it = statistics_.find(key);
  return it == statistics_.end() || stale_.contains(key) ? nullptr : it->second.get();
}

void StatisticSet::rescale(PortId port, const at::Tensor& s) {
  for (auto& [key, statistic] : statistics_) {
    const bool below = block_.ports.at(key.first).parent == port && !block_.ports.at(port).pooled;
    if ((key.first == port || below) && !statistic->rescale(s)) stale_.insert(key);
  }
}

std::unique_ptr<StatisticSet> StatisticSet::renewed() const {
  auto fresh = std::make_unique<StatisticSet>(block_, expected_tokens_, normalize_tokens_);
  for (const Key& key : stale_) fresh->add(key.first, key.second, makers_.at(key));
  return fresh;
}

void StatisticSet::renew(StatisticSet& fed) {
  fed.finish(prior_tokens_);
  for (const Key& key : stale_) statistics_[key] = std::move(fed.statistics_.at(key));
  stale_.clear();
}

double StatisticSet::operations(PortId port, double tokens) const {
  double operations = 0;
  for (const auto& [key, statistic] : statistics_) {
    if (key.first == port) operations += statistic->operations(tokens);
  }
  return operations;
}

int64_t StatisticSet::bytes(PortId port, int64_t tokens, int64_t element_bytes,
                            MeasuredStatistics& measured) const {
  int64_t bytes = 0;
  for (const auto& [key, statistic] : statistics_) {
    if (key.first != port) continue;
    const int64_t told = statistic->bytes(tokens, element_bytes);
    bytes +=
        told >= 0 ? told : measured.bytes(key.second, block_.ports.at(port).features, *statistic, tokens);
  }
  return bytes;
}

int64_t MeasuredStatistics::bytes(const std::string& id, int64_t features, const Statistic& statistic,
                                  int64_t tokens) {
  constexpr int64_t kRows = 16;
  const auto [entry, fresh] = sizes_.try_emplace({id, features});
  Size& size = entry->second;
  if (fresh) {
    const auto copy = statistic.clone();
    const auto bytes_after = [&] {
      copy->update(at::ones({kRows, features}));
      double bytes = 0;
      for (const auto& [name, tensor] : copy->state())
        bytes += tensor.defined() ? static_cast<double>(tensor.nbytes()) : 0;
      return bytes;
    };
    const double first = bytes_after(), second = bytes_after();
    size.for_each_token = std::max(0.0, (second - first) / kRows);
    size.fixed = second - 2 * kRows * size.for_each_token;
  }
  return static_cast<int64_t>(size.fixed + size.for_each_token * static_cast<double>(tokens));
}

double StatisticSet::tokens(PortId port) const {
  const auto it = tokens_.find(port);
  return it == tokens_.end() ? -1 : it->second;
}

}  // namespace slim
