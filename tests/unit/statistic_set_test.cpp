#include "statistics/statistic_set.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include "slim/histogram.hpp"

using namespace slim;

namespace {

/// A norm's output, and what one expert sees of it.
BlockPlan block() {
  BlockPlan plan;
  plan.name = "block";
  plan.ports = {{0, "mlp_input", 4}, {1, "expert 0 input", 4, 0}, {2, "attention_input", 4}};
  return plan;
}

void feed(StatisticSet& set, const at::Tensor& x) {
  set.update(0, x);
  set.update(1, x.narrow(0, 0, 2));
  set.update(2, x);
}

}  // namespace

TEST_CASE("statistic_set/ what cannot follow a scale is stale until it was fed again; all else follows") {
  at::manual_seed(1);
  const BlockPlan plan = block();
  const at::Tensor x = at::randn({9, 4}), s = at::tensor({1.0f, 2.0f, 3.0f, 0.5f});
  StatisticSet set(plan, 9), expected(plan, 9);
  for (StatisticSet* each : {&set, &expected}) {
    each->want<Histogram>(1);
    each->want<Histogram>(2);
    each->want<ChannelMoments>(1, 4);
  }
  feed(set, x);
  set.finish(128);
  CHECK(!set.stale());
  set.rescale(0, s);
  CHECK(set.stale());
  for (const PortId port : {0, 1}) {
    CHECK(set.find(port, Histogram::kId) == nullptr);
    CHECK(set.find(port, ChannelMoments::kId) != nullptr);
  }
  CHECK(set.find(2, Histogram::kId) != nullptr);
  CHECK(set.clone()->stale());

  const auto again = set.renewed();
  feed(*again, x / s);
  set.renew(*again);
  CHECK(!set.stale());
  feed(expected, x / s);
  expected.finish(128);
  for (const PortId port : {0, 1}) {
    const auto counts = [&](const StatisticSet& each) {
      return static_cast<const Histogram*>(each.find(port, Histogram::kId))->counts();
    };
    CHECK(at::equal(counts(set), counts(expected)));
    CHECK(at::allclose(static_cast<const ChannelMoments*>(set.find(port, ChannelMoments::kId))->max(),
                       static_cast<const ChannelMoments*>(expected.find(port, ChannelMoments::kId))->max()));
  }
}

TEST_CASE(
    "statistic_set/ every token weighs alike in what serves the error of outputs, and in nothing else") {
  at::manual_seed(2);
  const BlockPlan plan = block();
  const at::Tensor x = at::randn({6, 4}),
                   sizes = at::tensor({1.0f, 256.0f, 0.5f, 0.125f, 4096.0f, 0.0f}).unsqueeze(1);
  StatisticSet alike(plan, 6, /*normalize_tokens=*/true), as_they_are(plan, 6);
  for (StatisticSet* each : {&alike, &as_they_are}) {
    each->want<Gram>(0, 4);
    each->want<ActivationRows>(0, 4, 6);
    each->want<ChannelMoments>(0, 4);
    each->update(0, x * sizes);
  }
  const auto gram = [](const StatisticSet& set) { return *static_cast<const Gram*>(set.find(0, Gram::kId)); };
  const at::Tensor seen = x.narrow(0, 0, 5), even = seen / seen.square().mean(1, true).sqrt();
  CHECK(at::allclose(gram(alike).sum(), even.t().matmul(even), 1e-5, 1e-5));
  CHECK(gram(alike).tokens == 6);
  CHECK(at::allclose(static_cast<const ActivationRows*>(alike.find(0, ActivationRows::kId))->rows(),
                     at::cat({even, at::zeros({1, 4})}), 1e-5, 1e-5));
  CHECK(at::allclose(gram(as_they_are).sum(), (x * sizes).t().matmul(x * sizes), 1e-5));
  for (const StatisticSet* each : {&alike, &as_they_are}) {
    CHECK(at::equal(static_cast<const ChannelMoments*>(each->find(0, ChannelMoments::kId))->max(),
                    std::get<0>((x * sizes).max(0))));
  }
}

namespace {

/// A statistic of a plugin that does not tell its bytes: keeps every row, or a matrix of its own.
class Untold final : public Statistic {
 public:
  static constexpr std::string_view kId = "test.untold";
  explicit Untold(bool keeps_rows) : keeps_rows_(keeps_rows) {}
  void update(const at::Tensor& x) override {
    if (keeps_rows_)
      kept_ = kept_.defined() ? at::cat({kept_, x}) : x.clone();
    else if (!kept_.defined())
      kept_ = at::zeros({x.size(1), 3 * x.size(1)});
    tokens += static_cast<double>(x.size(0));
  }
  void merge(const Statistic&, double) override {}
  bool rescale(const at::Tensor&) override { return false; }
  std::unique_ptr<Statistic> clone() const override { return std::make_unique<Untold>(*this); }
  TensorMap state() const override { return {{"kept", kept_}}; }
  Status restore(const TensorMap&) override { return {}; }

 private:
  bool keeps_rows_;
  at::Tensor kept_;
};

}  // namespace

TEST_CASE(
    "statistic_set/ bytes are those that statistics tell, or what a few rows of them take, extrapolated") {
  constexpr int64_t kTokens = 1000, kFeatures = 4;
  const BlockPlan plan = block();
  MeasuredStatistics measured;
  const auto bytes = [&](auto&& want) {
    StatisticSet set(plan, kTokens);
    want(set);
    return set.bytes(2, kTokens, /*element_bytes=*/2, measured);
  };
  CHECK(bytes([](StatisticSet&) {}) == 0);
  CHECK(bytes([](StatisticSet& set) { set.want<Gram>(2, kFeatures); }) == kFeatures * kFeatures * 4);
  CHECK(bytes([](StatisticSet& set) { set.want<ActivationRows>(2, kFeatures, 100); }) == 100 * kFeatures * 2);
  CHECK(bytes([](StatisticSet& set) { set.want<Untold>(2, true); }) == kTokens * kFeatures * 4);
  MeasuredStatistics fresh;
  StatisticSet fixed(plan, kTokens);
  fixed.want<Untold>(2, false);
  CHECK(fixed.bytes(2, kTokens, 2, fresh) == 3 * kFeatures * kFeatures * 4);
  CHECK(static_cast<const Untold*>(fixed.find(2, Untold::kId))->tokens == 0);  // measured on a copy
}
