// An algorithm at work on a block of the lab, as a run would have it.
#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "lab.h"
#include "plugin/guard.h"
#include "slim/quant.hpp"

namespace slim::conformance {

namespace {

struct LabNotes final : Notes {
  void note(std::string_view, std::string_view, std::string_view) override {}
  void metric(std::string_view, std::string_view, double) override {}
};

class LabObservations final : public Observations {
 public:
  void add(PortId port, std::string_view id, std::function<std::unique_ptr<Statistic>()> make) override {
    auto& slot = statistics[{port, std::string(id)}];
    if (!slot) slot = make();
  }
  void keep_inputs(RegionId region) override { regions.insert(region); }
  int64_t expected_tokens() const override { return kLabInputs * kLabTokens; }
  void update(PortId port, const at::Tensor& x) {
    for (auto& [key, statistic] : statistics) {
      if (key.first == port) statistic->update(x);
    }
  }
  const Statistic* find(PortId port, std::string_view id) const {
    const auto found = statistics.find({port, std::string(id)});
    return found == statistics.end() ? nullptr : found->second.get();
  }

  std::map<std::pair<PortId, std::string>, std::unique_ptr<Statistic>> statistics;
  std::set<RegionId> regions;
};

/// Everything that the contexts of one block share.
struct Bench {
  LabBlock block;
  std::vector<const Scheme*> schemes;
  LabObservations observations;
  std::map<RegionId, std::vector<at::Tensor>> region_inputs;
  std::map<RegionId, std::vector<at::Tensor>> references;
  std::map<PortId, TensorMap> port_caches;
  LabNotes notes;
  LabJob job;
  LabResult result;
};

class LabTransform final : public BlockContext {
 public:
  explicit LabTransform(Bench& bench) : bench_(bench) {}
  const BlockPlan& plan() const override { return bench_.block.plan; }
  const Scheme* scheme(LayerId id) const override { return bench_.schemes.at(static_cast<size_t>(id)); }
  at::Tensor weight(LayerId id) const override { return bench_.block.tensors.weight.at(id).clone(); }
  at::Tensor norm_weight(const ScaleEdge& edge) const override {
    return bench_.block.tensors.params.at(edge.norm_weight).clone();
  }
  at::ScalarType scale_dtype() const override { return at::kBFloat16; }
  const Statistic* find(PortId port, std::string_view id) const override {
    return bench_.job.faults.no_statistics ? nullptr : bench_.observations.find(port, id);
  }
  Result<double> loss(RegionId region, const Overrides& overrides) override {
    ++bench_.result.losses;
    const Status fault(Code::kIo, "this host's disk is full");
    if (bench_.job.faults.loss == Faults::Loss::kStatus) return fault;
    if (bench_.job.faults.loss == Faults::Loss::kThrow) throw ExecError(fault);
    if (!bench_.observations.regions.count(region))
      return Status(Code::kInternal, "loss() of a region that keep_inputs() was not asked for");
    auto& references = bench_.references[region];
    LabExec exec = bench_.block.exec();
    double squared = 0, count = 0;
    const auto& inputs = bench_.region_inputs[region];
    for (size_t i = 0; i < inputs.size(); ++i) {
      exec.overrides = nullptr;
      if (references.size() <= i) references.push_back(bench_.block.region(region, inputs[i], exec));
      exec.overrides = &overrides;
      const at::Tensor error = bench_.block.region(region, inputs[i], exec) - references[i];
      squared += error.square().sum().item<double>();
      count += static_cast<double>(error.numel());
    }
    return squared / count;
  }
  Result<at::Tensor> fold(const ScaleEdge& edge, const at::Tensor& s) override {
    const int64_t features = plan().ports.at(static_cast<size_t>(edge.port)).features;
    if (s.dim() != 1 || s.size(0) * edge.repeat != features)
      return Status(Code::kInternal, edge.name + ": a scale of a wrong shape");
    if (!(at::isfinite(s) & (s > 0)).all().item<bool>())
      return Status(Code::kNumeric, edge.name + ": a scale that is not positive and finite");
    SLIM_TRY(fold_edge(plan(), edge, s, bench_.block.tensors));
    for (auto& [key, statistic] : bench_.observations.statistics) {
      if (key.first == edge.port && !statistic->rescale(columns_of(edge, s)))
        return Status(Code::kInternal, key.second + " cannot follow a scale");
    }
    return s;
  }
  Status set_weight(LayerId id, const at::Tensor& weight) override {
    if (weight.sizes() != bench_.block.tensors.weight.at(id).sizes())
      return {Code::kInternal, "set_weight() with a wrong shape"};
    bench_.block.tensors.weight[id] = weight.to(at::kFloat);
    bench_.result.function_changed = true;
    return {};
  }
  Notes& notes() override { return bench_.notes; }

 private:
  Bench& bench_;
};

class LabLayer final : public LayerContext {
 public:
  LabLayer(Bench& bench, const Layer& layer) : bench_(bench), layer_(layer) {}
  const Layer& layer() const override { return layer_; }
  const Scheme& scheme() const override { return *bench_.schemes[static_cast<size_t>(layer_.id)]; }
  at::Tensor weight() const override {
    const at::Tensor& weight = bench_.block.tensors.weight.at(layer_.id);
    return bench_.job.strided ? weight.t().contiguous().t() : weight.clone();
  }
  at::Tensor bias() const override { return {}; }
  at::ScalarType scale_dtype() const override { return at::kBFloat16; }
  const Statistic* find(std::string_view id) const override {
    return bench_.job.faults.no_statistics ? nullptr : bench_.observations.find(layer_.input, id);
  }
  double fused_abs_max() const override {
    double largest = abs_max(layer_.id);
    for (const FusedGroup& group : bench_.block.plan.fused) {
      if (std::count(group.layers.begin(), group.layers.end(), layer_.id) == 0) continue;
      for (const LayerId id : group.layers) largest = std::max(largest, abs_max(id));
    }
    return largest;
  }
  TensorMap& port_cache() override { return bench_.port_caches[layer_.input]; }
  uint64_t seed() const override { return 17 + static_cast<uint64_t>(layer_.id); }
  Notes& notes() override { return bench_.notes; }

 private:
  double abs_max(LayerId id) const { return bench_.block.tensors.weight.at(id).abs().max().item<double>(); }

  Bench& bench_;
  const Layer& layer_;
};

/// The calibration pass.
void collect(Bench& bench) {
  if (bench.observations.statistics.empty() && bench.observations.regions.empty()) return;
  LabExec exec = bench.block.exec();
  std::set<PortId> seen;
  exec.on_linear = [&](LayerId id, const at::Tensor& x, const at::Tensor&) {
    const PortId port = bench.block.plan.layers[static_cast<size_t>(id)].input;
    if (seen.insert(port).second) bench.observations.update(port, x);
  };
  exec.on_tap = [&](PortId port, const at::Tensor& x) { bench.observations.update(port, x); };
  exec.on_region = [&](RegionId region, const at::Tensor& x) { bench.region_inputs[region].push_back(x); };
  for (const at::Tensor& x : bench.block.inputs) {
    seen.clear();
    bench.block.forward(x, exec);
  }
}

Status solve_all(Algorithm& algorithm, Bench& bench) {
  std::vector<const Layer*> order;
  for (const Layer& layer : bench.block.plan.layers) order.push_back(&layer);
  if (bench.job.reverse) std::reverse(order.begin(), order.end());
  for (const Layer* layer : order) {
    if (!bench.schemes[static_cast<size_t>(layer->id)]) continue;
    LabLayer context(bench, *layer);
    SLIM_ASSIGN(bench.result.solved[layer->id], guarded(layer->name, [&] {
                  return algorithm.solves() ? algorithm.solve(context) : quant::round_to_nearest(context);
                }));
  }
  return {};
}

}  // namespace

Result<LabResult> work(Algorithm& algorithm, const LabBlock& block, const LabJob& job) {
  Bench bench;
  bench.block = block;
  bench.job = job;
  bench.schemes.assign(block.plan.layers.size(), &bench.job.scheme);
  SLIM_TRY(guarded("observe", [&]() -> Status {
    algorithm.observe(bench.block.plan, bench.schemes, bench.observations);
    return {};
  }));
  collect(bench);
  const bool observed = !bench.observations.statistics.empty() || !bench.observations.regions.empty();
  if (observed) {
    LabTransform context(bench);
    SLIM_TRY(guarded("transform", [&] { return algorithm.transform(context); }));
  }
  if (job.solve) SLIM_TRY(solve_all(algorithm, bench));
  bench.result.tensors = bench.block.tensors;
  return std::move(bench.result);
}

at::Tensor dense(const Solved& solved) {
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  return quantized ? quant::decode(*quantized) : std::get<Dense>(solved.weight).weight.to(at::kFloat);
}

bool same(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

bool same(const Solved& a, const Solved& b) {
  if (a.weight.index() != b.weight.index()) return false;
  const auto *x = std::get_if<Quantized>(&a.weight), *y = std::get_if<Quantized>(&b.weight);
  const bool weights = x ? same(x->codes, y->codes) && same(x->scale, y->scale) && same(x->zero, y->zero) &&
                               same(x->group_index, y->group_index)
                         : same(std::get<Dense>(a.weight).weight, std::get<Dense>(b.weight).weight);
  return weights && same(a.bias, b.bias) && same(a.input_scale, b.input_scale) &&
         same(a.input_zero, b.input_zero);
}

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).norm().item<double>() / std::max(b.norm().item<double>(), 1e-20);
}

}  // namespace slim::conformance
