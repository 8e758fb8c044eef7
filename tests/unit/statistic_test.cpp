#include "slim/statistic.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace slim;

namespace {

constexpr int64_t kFeatures = 6;

at::Tensor random(int64_t tokens, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({tokens, kFeatures});
}

/// Applies `check` to one empty statistic of each type.
template <class F>
void for_each_statistic(F&& check) {
  check(std::make_unique<Gram>(kFeatures));
  check(std::make_unique<ChannelMoments>(kFeatures));
  check(std::make_unique<ActivationRows>(kFeatures, 1000));
}

template <class S>
std::unique_ptr<S> empty(const S&) {
  if constexpr (std::is_same_v<S, ActivationRows>) {
    return std::make_unique<S>(kFeatures, 1000);
  } else {
    return std::make_unique<S>(kFeatures);
  }
}

bool close(const TensorMap& a, const TensorMap& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [key, value] : a) {
    const auto other = b.find(key);
    if (other == b.end() || other->second.sizes() != value.sizes()) return false;
    if (!at::allclose(value.to(at::kDouble), other->second.to(at::kDouble), 1e-5, 1e-4)) return false;
  }
  return true;
}

bool equal(const TensorMap& a, const TensorMap& b) {
  return a.size() == b.size() && std::all_of(a.begin(), a.end(), [&](const auto& entry) {
           return b.contains(entry.first) && at::equal(entry.second, b.at(entry.first));
         });
}

}  // namespace

TEST_CASE("statistic/ a Gram is the product of the transposed activations with the activations") {
  const at::Tensor x = random(50, 1);
  Gram gram(kFeatures);
  gram.update(x.narrow(0, 0, 20).to(at::kFloat));
  gram.update(x.narrow(0, 20, 30));
  CHECK(at::allclose(gram.sum(), at::matmul(x.t(), x), 1e-5, 1e-4));
  CHECK(at::equal(gram.sum(), gram.sum().t()));
  CHECK(gram.tokens == 50);
}

TEST_CASE("statistic/ moments are those of all tokens") {
  const at::Tensor x = random(50, 2);
  ChannelMoments moments(kFeatures);
  moments.update(x.narrow(0, 0, 1));
  moments.update(x.narrow(0, 1, 49));
  CHECK(at::allclose(moments.mean_abs(), x.abs().mean(0)));
  CHECK(at::allclose(moments.mean_square(), x.square().mean(0)));
  CHECK(at::equal(moments.min(), std::get<0>(x.min(0))));
  CHECK(at::equal(moments.max(), std::get<0>(x.max(0))));
  CHECK(at::equal(moments.abs_max(), x.abs().amax(0)));
}

TEST_CASE("statistic/ how tokens are batched, and empty batches, do not matter") {
  const at::Tensor x = random(37, 3);
  for_each_statistic([&](auto whole) {
    auto parts = empty(*whole);
    whole->update(x);
    for (const auto& [begin, size] : {std::pair<int64_t, int64_t>{0, 5}, {5, 0}, {5, 30}, {35, 2}})
      parts->update(x.narrow(0, begin, size));
    CHECK(close(whole->state(), parts->state()));
  });
}

TEST_CASE("statistic/ merging is as if one had seen all tokens") {
  const at::Tensor x = random(40, 4);
  for_each_statistic([&](auto whole) {
    auto left = empty(*whole), right = empty(*whole), none = empty(*whole);
    whole->update(x);
    left->update(x.narrow(0, 0, 15));
    right->update(x.narrow(0, 15, 25));
    left->merge(*right, 1.0);
    left->merge(*none, 1.0);
    CHECK(close(whole->state(), left->state()));
    none->merge(*whole, 1.0);
    CHECK(close(whole->state(), none->state()));
  });
}

TEST_CASE("statistic/ a weighted merge mixes means by weighted tokens") {
  const at::Tensor a = random(10, 5), b = random(40, 6);
  const double weight = 0.25;
  const at::Tensor second = (at::matmul(a.t(), a) + weight * at::matmul(b.t(), b)) / 20.0;
  Gram gram(kFeatures), other_gram(kFeatures);
  gram.update(a);
  other_gram.update(b);
  gram.merge(other_gram, weight);
  CHECK(gram.tokens == 20);
  CHECK(at::allclose(gram.mean(), second, 1e-5, 1e-5));
  ActivationRows rows(kFeatures, 1000), other_rows(kFeatures, 1000);
  rows.update(a);
  other_rows.update(b);
  rows.merge(other_rows, weight);
  const at::Tensor kept = rows.rows();
  CHECK(at::allclose(at::matmul(kept.t(), kept) / kept.size(0), second, 1e-5, 1e-5));
  ChannelMoments moments(kFeatures), other_moments(kFeatures);
  moments.update(a);
  other_moments.update(b);
  moments.merge(other_moments, weight);
  CHECK(at::allclose(moments.mean_square(), second.diagonal(), 1e-5, 1e-5));
}

TEST_CASE("statistic/ rescaling is as if the activations had been divided") {
  const at::Tensor x = random(30, 7), s = at::rand({kFeatures}) + 0.1;
  for_each_statistic([&](auto statistic) {
    auto divided = empty(*statistic);
    statistic->update(x);
    divided->update(x / s);
    CHECK(statistic->rescale(s));
    CHECK(close(statistic->state(), divided->state()));
  });
}

TEST_CASE("statistic/ a clone is independent") {
  for_each_statistic([&](auto statistic) {
    statistic->update(random(5, 8));
    const auto copy = statistic->clone();
    const auto before = copy->state();
    std::map<std::string, at::Tensor> saved;
    for (const auto& [key, value] : before) saved[key] = value.clone();
    statistic->update(random(5, 9));
    statistic->rescale(at::full({kFeatures}, 2.0));
    for (const auto& [key, value] : copy->state()) CHECK(at::equal(value, saved.at(key)));
    CHECK(copy->tokens == 5);
  });
}

TEST_CASE("statistic/ a restored statistic goes on bit by bit") {
  for_each_statistic([&](auto statistic) {
    auto restored = empty(*statistic);
    statistic->update(random(13, 10));
    TensorMap saved;
    for (const auto& [key, value] : statistic->state()) saved[key] = value.clone();
    REQUIRE(restored->restore(saved).ok());
    statistic->update(random(9, 11));
    restored->update(random(9, 11));
    CHECK(equal(statistic->state(), restored->state()));
  });
}

TEST_CASE("statistic/ a state of another run is refused") {
  for_each_statistic([&](auto statistic) {
    Gram other(kFeatures + 1);
    other.update(at::randn({3, kFeatures + 1}));
    CHECK(statistic->restore(other.state()).code() == Code::kCorrupt);
    CHECK(statistic->restore({}).code() == Code::kCorrupt);
  });
}

TEST_CASE("statistic/ rows are thinned evenly, whatever the batches") {
  const int64_t tokens = 1000, capacity = 64;
  const at::Tensor x = at::arange(tokens, at::kFloat).unsqueeze(1).expand({tokens, kFeatures});
  ActivationRows one(kFeatures, capacity), many(kFeatures, capacity);
  one.update(x);
  for (int64_t begin = 0; begin < tokens; begin += 7)
    many.update(x.narrow(0, begin, std::min<int64_t>(7, tokens - begin)));
  CHECK(at::equal(one.rows(), many.rows()));
  CHECK(one.rows().size(0) <= capacity);
  CHECK(one.rows().size(0) > capacity / 2);
  CHECK(at::equal(one.rows().select(1, 0), at::arange(0, tokens, 16, at::kFloat)));
  CHECK(one.tokens == tokens);
}

TEST_CASE("statistic/ means of no tokens are zero") {
  CHECK(Gram(kFeatures).mean().abs().max().item<float>() == 0);
  CHECK(ChannelMoments(kFeatures).mean_abs().abs().max().item<float>() == 0);
  CHECK(ChannelMoments(kFeatures).max().abs().max().item<float>() == 0);
  CHECK(ActivationRows(kFeatures, 3).rows().size(0) == 0);
}
