#pragma once
#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "slim/abi.h"
#include "slim/algorithm.hpp"

/// What tests of algorithms stand on: layers that read one input, with the statistics that an algorithm asked for.
namespace slim::testing {

struct RecordedNotes final : Notes {
  void note(std::string_view kind, std::string_view, std::string_view) override { kinds.emplace_back(kind); }
  void metric(std::string_view, std::string_view key, double value) override {
    metrics[std::string(key)] = value;
  }
  bool has(std::string_view kind) const { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); }
  std::vector<std::string> kinds;
  std::map<std::string, double> metrics;
};

struct Requests final : Observations {
  void add(PortId port, std::string_view id, std::function<std::unique_ptr<Statistic>()> make) override {
    auto& slot = made[{port, std::string(id)}];
    if (!slot) slot = make();
  }
  void keep_inputs(RegionId region) override { regions.insert(region); }
  int64_t expected_tokens() const override { return tokens; }
  const Statistic* find(PortId port, std::string_view id) const {
    const auto found = made.find({port, std::string(id)});
    return found == made.end() ? nullptr : found->second.get();
  }
  void update(const at::Tensor& x) {
    for (auto& [key, statistic] : made) statistic->update(x);
  }
  std::map<std::pair<PortId, std::string>, std::unique_ptr<Statistic>> made;
  std::set<RegionId> regions;
  int64_t tokens = 1000;
};

/// A block of layers [out, in] that all read port 0.
inline BlockPlan block_of(const std::vector<at::Tensor>& weights) {
  BlockPlan plan;
  plan.name = "block";
  plan.ports = {{0, "input", weights.front().size(1)}};
  for (size_t i = 0; i < weights.size(); ++i) {
    Layer layer;
    layer.id = static_cast<LayerId>(i);
    layer.name = "layer" + std::to_string(i);
    layer.weight.tensor = layer.name + ".weight";
    layer.out = weights[i].size(0);
    layer.in = weights[i].size(1);
    plan.layers.push_back(layer);
  }
  return plan;
}

/// A block whose layers an engine merges, and its context for each layer.
class SingleLayer : public LayerContext {
 public:
  SingleLayer(Scheme scheme, std::vector<at::Tensor> weights, at::ScalarType scale_dtype = at::kBFloat16)
      : plan(block_of(weights)),
        weights(std::move(weights)),
        scheme_(std::move(scheme)),
        scale_dtype_(scale_dtype) {}

  /// Asks the algorithm what it wants to see, and shows it these batches.
  void observe(const Algorithm& algorithm, const std::vector<at::Tensor>& batches = {}) {
    algorithm.observe(plan, std::vector<const Scheme*>(weights.size(), &scheme_), requests);
    for (const at::Tensor& x : batches) requests.update(x);
  }
  void select(LayerId id) { id_ = id; }

  const Layer& layer() const override { return plan.layers[static_cast<size_t>(id_)]; }
  const Scheme& scheme() const override { return scheme_; }
  at::Tensor weight() const override {
    return weights[static_cast<size_t>(id_)].to(at::kFloat, false, /*copy=*/true);
  }
  at::Tensor bias() const override { return layer_bias; }
  at::ScalarType scale_dtype() const override { return scale_dtype_; }
  const Statistic* find(std::string_view id) const override { return requests.find(0, id); }
  double fused_abs_max() const override {
    double largest = 0;
    for (const at::Tensor& weight : weights) largest = std::max(largest, weight.abs().max().item<double>());
    return largest;
  }
  TensorMap& port_cache() override { return cache; }
  uint64_t seed() const override { return 1; }
  Notes& notes() override { return recorded; }

  BlockPlan plan;
  std::vector<at::Tensor> weights;
  at::Tensor layer_bias;
  Requests requests;
  RecordedNotes recorded;
  TensorMap cache;

 private:
  Scheme scheme_;
  at::ScalarType scale_dtype_;
  LayerId id_ = 0;
};

/// A layer beside the Gram matrix and the channel moments of its input x [tokens, in].
class CalibratedLayer final : public SingleLayer {
 public:
  CalibratedLayer(Scheme scheme, const at::Tensor& x, at::Tensor weight)
      : SingleLayer(std::move(scheme), {std::move(weight)}) {
    requests.want<Gram>(0, x.size(1));
    requests.want<ChannelMoments>(0, x.size(1));
    requests.update(x);
  }
  /// Mean square of what a weight changes at the output, summed over the outputs.
  double loss(const at::Tensor& decoded) const {
    const Gram& gram = *statistic<Gram>();
    const at::Tensor delta = (decoded - weights.front()).to(at::kDouble);
    return at::matmul(delta, gram.sum().to(at::kDouble)).mul(delta).sum().item<double>() / gram.tokens;
  }
};

/// Inputs whose channels depend on each other and differ in size.
inline at::Tensor correlated(int64_t tokens, int64_t features) {
  const at::Tensor mixing = at::randn({features, features}) / std::sqrt(static_cast<double>(features));
  const at::Tensor mixed = at::matmul(at::randn({tokens, features}), mixing);
  return (at::randn({tokens, features}) * 0.3 + mixed) * at::randn({features}).exp();
}

/// The algorithm of a plugin.
inline std::unique_ptr<Algorithm> create(const slim_plugin& plugin) {
  slim_error error{};
  return std::unique_ptr<Algorithm>(static_cast<Algorithm*>(plugin.components[0].create(nullptr, &error)));
}

/// The algorithm of a plugin, set up with `changes` of these options.
inline std::unique_ptr<Algorithm> create(const slim_plugin& plugin, Options options, const Options& changes) {
  auto algorithm = create(plugin);
  for (const auto& [key, value] : changes) options[key] = value;
  const Status status = algorithm->setup(options);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return algorithm;
}

inline Solved solve(Algorithm& algorithm, SingleLayer& layer) {
  Result<Solved> solved = algorithm.solve(layer);
  REQUIRE_MESSAGE(solved.ok(), solved.status().message());
  return *std::move(solved);
}

inline const Quantized& quantized(const Solved& solved) { return std::get<Quantized>(solved.weight); }

inline Scheme scheme(const std::string& name, int64_t group_size = 0) {
  const Result<Scheme> found = scheme_from_name(name, group_size);
  REQUIRE_MESSAGE(found.ok(), found.status().message());
  return *found;
}

inline bool same(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         at::equal(a.to(at::kFloat), b.to(at::kFloat));
}

}  // namespace slim::testing
