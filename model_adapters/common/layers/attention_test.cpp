#include "common/layers/attention.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <cmath>

using namespace slim::model;

namespace {

/// Attention of one sequence spelled out.
at::Tensor plain(const at::Tensor& q, at::Tensor k, at::Tensor v, double scale, bool causal,
                 int64_t window = 0) {
  const int64_t repeat = q.size(1) / k.size(1), rows = q.size(0), columns = k.size(0);
  k = k.repeat_interleave(repeat, 1);
  v = v.repeat_interleave(repeat, 1);
  auto scores = at::einsum("qhd,khd->hqk", {q, k}) * scale;
  auto seen = at::ones({rows, columns}, at::kBool);
  if (causal) seen = seen.tril(columns - rows);
  if (window > 0) seen = seen.triu(columns - rows - window + 1);
  scores = scores.masked_fill(seen.logical_not(), -INFINITY);
  return at::einsum("hqk,khd->qhd", {scores.softmax(-1), v}).flatten(1);
}

double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

class Cache final : public slim::KeyValueCache {
 public:
  std::pair<at::Tensor, at::Tensor> extend(int32_t, int64_t sequence, const at::Tensor& k,
                                           const at::Tensor& v) override {
    auto& [keys, values] = entries[sequence];
    keys = keys.defined() ? at::cat({keys, k}) : k;
    values = values.defined() ? at::cat({values, v}) : v;
    return entries[sequence];
  }
  std::map<int64_t, std::pair<at::Tensor, at::Tensor>> entries;
};

}  // namespace

TEST_CASE(
    "attention/ with a window a token sees the last few, whole or token by token, in any number of parts") {
  at::manual_seed(2);
  for (const int64_t n : {1, 7, 1500, 2100}) {
    for (const int64_t window : {int64_t{1}, int64_t{5}, int64_t{600}, n, n + 1}) {
      CAPTURE(n);
      CAPTURE(window);
      const auto q = at::randn({n, 2, 4}), k = at::randn({n, 1, 4}), v = at::randn({n, 1, 4});
      const std::vector<int64_t> lengths{n};
      const auto expected = plain(q, k, v, 0.5, true, window);
      CHECK(distance(attend(q, k, v, lengths, 0.5, {.window = window}), expected) < 1e-5);
      if (n > 10) continue;
      Cache cache;
      const std::vector<int64_t> one{1};
      for (int64_t i = 0; i < n; ++i) {
        const auto part = [&](const at::Tensor& x) { return x.narrow(0, i, 1); };
        const auto next = attend(part(q), part(k), part(v), one, 0.5, {.window = window}, {&cache, 0});
        CHECK(distance(next, part(expected)) < 1e-5);
      }
    }
  }
}

TEST_CASE("attention/ packed sequences attend only within themselves, grouped heads and all lengths") {
  at::manual_seed(1);
  const std::vector<std::vector<int64_t>> layouts{{5}, {3, 3}, {4, 1, 6}, {1, 1}};
  for (const auto& lengths : layouts) {
    for (const int64_t kv_heads : {1, 2, 4}) {
      for (const bool causal : {false, true}) {
        int64_t tokens = 0;
        for (const int64_t n : lengths) tokens += n;
        const auto q = at::randn({tokens, 4, 8}), k = at::randn({tokens, kv_heads, 8}),
                   v = at::randn({tokens, kv_heads, 8});
        const auto result = attend(q, k, v, lengths, 0.3, {.causal = causal});
        REQUIRE(result.sizes() == at::IntArrayRef{tokens, 32});
        int64_t begin = 0;
        for (const int64_t n : lengths) {
          const auto part = [&](const at::Tensor& x) { return x.narrow(0, begin, n); };
          CHECK(distance(part(result), plain(part(q), part(k), part(v), 0.3, causal)) < 1e-5);
          begin += n;
        }
      }
    }
  }
}

TEST_CASE("attention/ no tokens give no rows") {
  const auto none = at::empty({0, 2, 4});
  CHECK(attend(none, none, none, {}, 1.0, {.causal = false}).sizes() == at::IntArrayRef{0, 8});
}

TEST_CASE("attention/ with a cache, parts of sequences give what the whole gives") {
  at::manual_seed(2);
  const auto q = at::randn({2, 7, 4, 8}), k = at::randn({2, 7, 2, 8}), v = at::randn({2, 7, 2, 8});
  Cache cache;
  std::vector<at::Tensor> parts;
  int64_t begin = 0;
  for (const int64_t n : {3, 1, 2, 1}) {
    const auto part = [&](const at::Tensor& x) { return x.narrow(1, begin, n).flatten(0, 1); };
    const std::vector<int64_t> lengths{n, n};
    parts.push_back(attend(part(q), part(k), part(v), lengths, 0.5, {}, {&cache, 0}).view({2, n, 32}));
    begin += n;
  }
  const auto result = at::cat(parts, 1);
  for (int64_t i = 0; i < 2; ++i) CHECK(distance(result[i], plain(q[i], k[i], v[i], 0.5, true)) < 1e-5);
}

TEST_CASE("attention/ gradients reach queries, keys and values") {
  const auto make = [](int64_t heads) { return at::randn({3, heads, 8}).requires_grad_(true); };
  const auto q = make(4), k = make(2), v = make(2);
  const std::vector<int64_t> lengths{2, 1};
  attend(q, k, v, lengths, 0.5, {}).sum().backward();
  for (const auto& x : {q, k, v}) CHECK(x.grad().defined());
  CHECK(v.grad().abs().sum().item<double>() > 0);
}
