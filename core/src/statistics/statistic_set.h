#pragma once
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "slim/feedback.hpp"
#include "slim/statistic.hpp"

namespace slim {

/// Bytes of statistics that do not tell them (Statistic::bytes), each measured once for every width.
class SLIM_API MeasuredStatistics {
 public:
  /// Extrapolates the size of the statistic's state() from a few rows of `features` numbers. `statistic` is not changed.
  int64_t bytes(const std::string& id, int64_t features, const Statistic& statistic, int64_t tokens);

 private:
  struct Size {
    double fixed = 0, for_each_token = 0;
  };
  std::map<std::pair<std::string, int64_t>, Size> sizes_;
};

/// The statistics of one block: what algorithms asked for, fed by the forward pass.
class SLIM_API StatisticSet final : public Observations, public quant::FactorObserver {
 public:
  /// `block` must outlive the set. `normalize_tokens`: for statistics that allow it.
  StatisticSet(const BlockPlan& block, int64_t expected_tokens, bool normalize_tokens = false)
      : block_(block), expected_tokens_(expected_tokens), normalize_tokens_(normalize_tokens) {}

  void add(PortId, std::string_view id, std::function<std::unique_ptr<Statistic>()> make) override;
  void keep_inputs(RegionId region) override { regions_.insert(region); }
  void expect_factor(PortId port) override { factorized_.insert(port); }
  bool factorizes(PortId port) const { return factorized_.contains(port); }
  int64_t expected_tokens() const override { return expected_tokens_; }

  /// An independent copy, for another output of the run.
  std::unique_ptr<StatisticSet> clone() const;
  bool keeps_inputs() const { return !regions_.empty(); }
  /// Calls visit(port, id, statistic) for each, in a fixed order; stops at the first error.
  Status for_each(const std::function<Status(const Port&, const std::string& id, Statistic&)>& visit);

  /// Independent copies of a port's statistics on another device.
  Result<std::unique_ptr<StatisticSet>> copied(PortId, at::Device) const;
  bool empty() const { return statistics_.empty() && regions_.empty(); }
  bool keeps(RegionId region) const { return regions_.contains(region); }
  /// x [..., features]: every row is one token.
  void update(PortId, const at::Tensor& x);
  /// After the last batch: fills pooled ports from their children, then shrinks every expert's statistics toward its parent's:
  /// (n_e M_e + k M_layer) / (n_e + k) with k = prior_tokens, so that a rarely used expert has a full-rank Gram.
  void finish(double prior_tokens);
  /// Null also for one that is stale.
  const Statistic* find(PortId, std::string_view id) const;
  /// Follows x -> x / s at the port and at the expert ports below it. What cannot follow becomes stale.
  void rescale(PortId, const at::Tensor& s);
  bool stale() const { return !stale_.empty(); }
  /// The stale statistics anew, to be fed by another pass over the block as it is now.
  std::unique_ptr<StatisticSet> renewed() const;
  /// Takes them over after that pass, finished as the others were.
  void renew(StatisticSet& fed);
  /// Forgets what was collected at a port that no one will ask for any more.
  void release(PortId port) {
    std::erase_if(statistics_, [port](const auto& entry) { return entry.first.first == port; });
  }
  /// Floating-point operations of update() at the port, for so many tokens.
  double operations(PortId port, double tokens) const;
  /// Bytes of the port's statistics after so many tokens, whose numbers have `element_bytes` each.
  int64_t bytes(PortId port, int64_t tokens, int64_t element_bytes, MeasuredStatistics& measured) const;
  /// Tokens that reached the port before shrinking; -1 if nothing was collected there.
  double tokens(PortId) const;

 private:
  using Key = std::pair<PortId, std::string>;
  using Make = std::function<std::unique_ptr<Statistic>()>;
  const BlockPlan& block_;
  int64_t expected_tokens_;
  bool normalize_tokens_;
  std::map<Key, std::unique_ptr<Statistic>> statistics_;
  std::map<Key, Make> makers_;
  std::set<Key> stale_;
  double prior_tokens_ = 0;
  std::map<PortId, double> tokens_;
  std::set<PortId> factorized_;
  std::set<RegionId> regions_;
};

}  // namespace slim
