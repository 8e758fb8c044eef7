#include "plan/work_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>

#include "slim/ops.hpp"
#include "statistics/statistic_set.h"

namespace slim {
namespace {

/// Counts what one block takes; the phases follow QuantizeRun and OutputRun.
class WorkCounter {
 public:
  WorkCounter(const RunConfig& config, const std::vector<OutputPlan>& outputs, const BlockPlan& block)
      : config_(config),
        outputs_(outputs),
        block_(block),
        tokens_(static_cast<double>(config.num_samples * config.max_seq_length)),
        observed_(block, static_cast<int64_t>(tokens_)) {
    for (const OutputPlan& output : outputs) observe(output, block, observed_);
  }

  bool observes() const { return !observed_.empty(); }

  /// `passes`: forward passes over the calibration batches.
  PlannedWork count(int passes) {
    work_.operations.add(Phase::kForward, passes * forward());
    for (const Port& port : block_.ports) {
      if (passes > 0)
        work_.operations.add(Phase::kStatistics, observed_.operations(port.id, tokens_of(port)));
      const auto features = static_cast<double>(port.features);
      if (observed_.factorizes(port.id))
        work_.operations.add(Phase::kFactor, kFactorShare * features * features * features);
    }
    for (const Layer& layer : block_.layers)
      work_.weights += static_cast<double>(layer.out) * static_cast<double>(layer.in);
    for (const OutputPlan& output : outputs_) solve(output);
    return work_;
  }

 private:
  /// A factorization and the inverse of a triangle.
  static constexpr double kFactorShare = 2.0 / 3;

  /// Tokens that an expert sees, where they are spread evenly.
  double tokens_of(const Port& port) const {
    const auto experts = block_.moe ? static_cast<double>(block_.moe->experts.size()) : 0;
    return port.parent >= 0 && experts > 0 && !config_.all_experts ? tokens_ * block_.moe->top_k / experts
                                                                   : tokens_;
  }
  const Port& input(const Layer& layer) const { return block_.ports[static_cast<size_t>(layer.input)]; }

  double forward() const {
    double operations = 0, widest_query = 0;
    for (const Layer& layer : block_.layers) {
      operations +=
          2 * tokens_of(input(layer)) * static_cast<double>(layer.out) * static_cast<double>(layer.in);
      if (layer.role == Role::kQuery) widest_query = static_cast<double>(layer.out);
    }
    return operations + 4 * tokens_ * static_cast<double>(config_.max_seq_length) * widest_query;
  }

  void solve(const OutputPlan& output) {
    for (size_t part = 0; part < output.recipe.parts.size(); ++part) {
      const auto schemes = output.plan.schemes(block_.index, part);
      for (const Layer& layer : block_.layers) {
        const Scheme* const scheme = schemes[static_cast<size_t>(layer.id)];
        if (!scheme) continue;
        for (const auto& algorithm : output.recipe.parts[part].algorithms)
          algorithm->count_operations(layer, *scheme, tokens_of(input(layer)), work_.operations);
      }
    }
  }

  const RunConfig& config_;
  const std::vector<OutputPlan>& outputs_;
  const BlockPlan& block_;
  double tokens_;
  StatisticSet observed_;
  PlannedWork work_;
};

/// Seconds of one call: the least of some, within a fifth of a second.
template <class F>
double seconds_of(F&& call) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  call();
  double least = 1e9;
  for (const auto begin = Clock::now(); seconds(begin) < 0.2;) {
    const auto start = Clock::now();
    call();
    least = std::min(least, seconds(start));
  }
  return least;
}

}  // namespace

std::vector<PlannedWork> count_work(const RunConfig& config, const Model& model,
                                    const std::vector<OutputPlan>& outputs) {
  // One counter at a time: those of a hundred blocks with a hundred experts each would take more memory than all the rest of a plan.
  size_t runs_until = 0;  // the block after the last that is observed
  const auto& blocks = model.plan.blocks;
  for (size_t i = 0; i < blocks.size() && config.statistics.empty(); ++i) {
    if (WorkCounter(config, outputs, blocks[i]).observes()) runs_until = i + 1;
  }
  std::vector<PlannedWork> work;
  for (size_t i = 0; i < blocks.size(); ++i) {
    WorkCounter counter(config, outputs, blocks[i]);
    work.push_back(counter.count((i < runs_until && counter.observes()) + (i + 1 < runs_until)));
  }
  return work;
}

MachineSpeed measure_machine(at::ScalarType dtype) {
  constexpr int64_t kSize = 768;
  const double operations = 2.0 * kSize * kSize * kSize;
  MachineSpeed speed;
  const at::Tensor a = at::rand({kSize, kSize}), b = at::rand({kSize, kSize});
  at::Tensor c = at::empty({kSize, kSize});
  speed.products = operations / seconds_of([&] { at::mm_out(c, a, b); });
  const at::Tensor x = a.to(dtype), w = b.to(dtype);
  speed.forward = operations / seconds_of([&] { c = ops::linear(x, w); });
  const at::Tensor from = at::ones({int64_t{2} << 20}), to = at::empty_like(from);
  speed.memory = 2.0 * static_cast<double>(from.nbytes()) / seconds_of([&] { to.copy_(from); });
  return speed;
}

PhaseSeconds estimate_seconds(const PlannedWork& work, const MachineSpeed& speed) {
  /// What each phase reaches of the best matrix product, measured (docs/performance.md); operations that are no products are in it.
  constexpr double kForward = 0.8, kStatistics = 0.8, kFactor = 0.5, kScaleSearch = 0.45, kRangeSearch = 0.45,
                   kSweep = 0.45;
  /// Bytes moved for a weight by reading, conversions, rounding and packing.
  constexpr double kBytesOfWeight = 40;
  PhaseSeconds seconds{};
  const auto add = [&](Phase phase, double rate) {
    seconds[static_cast<size_t>(phase)] = work.operations[phase] / rate;
  };
  add(Phase::kForward, kForward * speed.forward);
  add(Phase::kStatistics, kStatistics * speed.products);
  add(Phase::kFactor, kFactor * speed.products);
  add(Phase::kScaleSearch, kScaleSearch * speed.products);
  add(Phase::kRangeSearch, kRangeSearch * speed.products);
  add(Phase::kSweep, kSweep * speed.products);
  seconds[static_cast<size_t>(Phase::kRounding)] = work.weights * kBytesOfWeight / speed.memory;
  return seconds;
}

double sum(const PhaseSeconds& seconds) { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }

std::string phases_text(const PhaseSeconds& seconds, double least) {
  std::vector<size_t> order(kPhases);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return seconds[a] > seconds[b]; });
  std::string text;
  for (const size_t i : order) {
    if (seconds[i] < least) continue;
    char number[32];
    std::snprintf(number, sizeof number, " %.1f s", seconds[i]);
    text += (text.empty() ? "" : ", ") + std::string(phase_name(static_cast<Phase>(i))) + number;
  }
  return text;
}

}  // namespace slim
