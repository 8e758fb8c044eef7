#include "solve/equivalence.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "slim/phase.hpp"
#include "util/device_moves.h"

namespace slim {
namespace {

/// fp32 rounding stays far below the first bound. Where a change had to be rounded to a 16-bit dtype (biases, layers left in
/// float) the function itself moves by that rounding, relative 2^-9.
constexpr double kExactBound = 1e-4, kRoundedBound = 5e-3;

double bound_of(const BlockState& state) { return state.rounded ? kRoundedBound : kExactBound; }

Carry to_float(const Carry& carry) {
  Carry wide;
  for (const auto& [name, tensor] : carry)
    wide[name] = tensor.is_floating_point() ? tensor.to(at::kFloat) : tensor;
  return wide;
}

std::string percent(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

}  // namespace

Result<EquivalenceProof> EquivalenceProof::before(const Model& model, const BlockState& state,
                                                  const Carry& carry, at::Device device) {
  EquivalenceProof proof(model, to_float(carry_on(carry, device)), device);
  SLIM_ASSIGN(proof.reference_, proof.contribution(state));
  return proof;
}

Result<Carry> EquivalenceProof::contribution(const BlockState& state) const {
  const PhaseTimer timer(Phase::kProof);
  const c10::NoGradGuard no_grad;
  BlockExec exec(*model_->weights, at::kFloat, device_);
  exec.set_block(state.plan, &state.weights);
  Carry carry = carry_;
  SLIM_TRY(model_->forward(*state.plan, exec, carry));
  Carry made;
  for (const auto& [name, after] : carry) {
    const auto before = carry_.find(name);
    const bool carried = before != carry_.end() && after.sizes() == before->second.sizes();
    if (!after.is_floating_point() || (carried && after.is_same(before->second))) continue;
    made[name] = carried ? after - before->second : after;
  }
  return made;
}

Result<double> EquivalenceProof::relative_error(const BlockState& state) const {
  SLIM_ASSIGN(const Carry now, contribution(state));
  double largest = 0;
  for (const auto& [name, reference] : reference_) {
    const double scale = reference.norm().item<double>();
    const double error = (now.at(name) - reference).norm().item<double>() / std::max(scale, 1e-20);
    if (std::isnan(error)) return error;
    largest = std::max(largest, error);
  }
  return largest;
}

Status EquivalenceProof::check(const BlockState& after, const Folds& folds, const RunPlan& run) const {
  SLIM_ASSIGN(error_, relative_error(after));
  if (error_ <= bound_of(after)) return {};
  return name_edge(after, folds, run);
}

/// Only after a failure: the folds again, one by one, from the block's original weights.
Status EquivalenceProof::name_edge(const BlockState& after, const Folds& folds, const RunPlan& run) const {
  const BlockPlan& block = *after.plan;
  BlockState state;
  state.plan = &block;
  SLIM_ASSIGN(BlockWeights weights, model_->weights->load(block));
  state.weights = moved(std::move(weights), device_);
  StatisticSet none(block, 0);
  BlockExec exec(*model_->weights, at::kFloat, device_);
  RunNotes notes;
  const std::vector<Carry> carries;
  BlockTransform again(*model_, run, 0, at::kFloat, state, none, exec, carries, notes);
  std::string edge = "all folds together";
  double error = error_;
  for (const auto& [folded, s] : folds) {
    SLIM_ASSIGN(const at::Tensor applied, again.fold(*folded, s));
    SLIM_ASSIGN(const double now, relative_error(state));
    if (now <= bound_of(state)) continue;
    edge = folded->name;
    error = now;
    break;
  }
  return {Code::kNumeric, block.name + ": the float output moved when a scale was folded at edge '" + edge +
                              "': relative error " + percent(error) + ", allowed " +
                              percent(bound_of(after)) +
                              "; the adapter's edge or the algorithm's scale is wrong"};
}

}  // namespace slim
