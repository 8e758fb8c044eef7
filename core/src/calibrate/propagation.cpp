#include "calibrate/propagation.h"

#include <ATen/ATen.h>

#include "slim/phase.hpp"
#include "util/device_moves.h"

namespace slim {
namespace {

/// Names the tensor that an error about NaN comes from.
Status blame_weights(const BlockState& state, const Status& status) {
  if (status.code() != Code::kNumeric) return status;
  const auto damaged = [](const at::Tensor& tensor) {
    return tensor.defined() && !at::isfinite(tensor).all().item<bool>();
  };
  std::string name;
  for (const auto& [param, tensor] : state.weights.params) {
    if (damaged(tensor)) name = param;
  }
  for (const Layer& layer : state.plan->layers) {
    if (damaged(state.weights.bias[layer.id])) name = layer.bias;
    if (damaged(state.weights.weight[layer.id])) name = layer.weight.tensor;
  }
  if (name.empty())
    return {status.code(), status.message() + "; its weights are finite: compute with --dtype float32"};
  return {status.code(), status.message() + ", as tensor " + name + " does; download the checkpoint again"};
}

/// Lets passes of an exec fill the statistics while it lives.
class CollectingInto {
 public:
  CollectingInto(BlockExec& exec, StatisticSet& statistics) : exec_(exec) {
    exec.set_statistics(&statistics);
  }
  ~CollectingInto() { exec_.set_statistics(nullptr); }
  CollectingInto(const CollectingInto&) = delete;
  CollectingInto& operator=(const CollectingInto&) = delete;

 private:
  BlockExec& exec_;
};

}  // namespace

Propagation::Propagation(const ForwardRunner::Options& options, const Model& model, Spill spill, Notes& notes,
                         Progress& progress)
    : model_(model),
      spill_(std::move(spill)),
      notes_(notes),
      progress_(progress),
      runner_(*model.weights, options, notes) {}

// ---- the entry of the model ------------------------------------------------------------------------------------------

Status Propagation::begin(const RunConfig& config) {
  SLIM_ASSIGN(calibration_, calibrate_input(config, model_, runner_.exec(), progress_, spill_));
  if (calibration_.begun_on_host > 0) {
    notes_.note("batches begun on the CPU: out of the device's memory", "the model's entry",
                std::to_string(calibration_.begun_on_host) + " batches");
  }
  return {};
}

Status Propagation::resume(Calibration calibration) {
  calibration_ = std::move(calibration);
  for (Carry& carry : calibration_.batches) {
    SLIM_ASSIGN(carry, spill_.store(std::move(carry)));
  }
  return {};
}

void Propagation::count_tokens(int64_t text, int64_t image) {
  calibration_.text_tokens = text;
  calibration_.image_tokens = image;
}

// ---- block by block --------------------------------------------------------------------------------------------------

Status Propagation::enter(const BlockPlan& block) {
  return replace_each(
      block.name, [&](size_t, BlockExec& exec, Carry& there) { return model_.enter(block, exec, there); });
}

Status Propagation::advance(const BlockState& state) {
  return replace_each(state.plan->name,
                      [&](size_t, BlockExec& exec, Carry& there) { return forward(state, exec, there); });
}

Status Propagation::collect(const BlockState& state, StatisticSet& statistics, BlockExec& exec,
                            std::vector<Carry>* outputs) {
  if (statistics.empty() && !outputs) return {};
  const auto pass = [&](size_t i, BlockExec& on, Carry& there) -> Status {
    const CollectingInto collecting(on, statistics);
    SLIM_TRY(forward(state, on, there));
    if (statistics.keeps_inputs()) SLIM_TRY(keep_region_inputs(on));
    Spill::release(calibration_.batches[i]);
    return {};
  };
  ForwardRunner::Keep keep;
  if (outputs) {
    outputs->resize(calibration_.batches.size());
    keep = [&](size_t i, Carry output) -> Status {
      SLIM_ASSIGN((*outputs)[i], kept(std::move(output)));
      return {};
    };
  }
  return runner_.run_with(exec, calibration_.batches.size(), batches(), pass, keep);
}

Status Propagation::forward(const BlockState& state, BlockExec& exec, Carry& carry) {
  const PhaseTimer timer(Phase::kForward);
  exec.set_block(state.plan, &state.weights);
  SLIM_TRY(blame_weights(state, model_.forward(*state.plan, exec, carry)));
  return progress_.cancelled() ? Status(Code::kCancelled, "interrupted in " + state.plan->name) : Status{};
}

/// Replaces each batch by the result of `pass`.
Status Propagation::replace_each(const std::string& where, const ForwardRunner::Pass& pass) {
  const auto keep = [&](size_t i, Carry made) -> Status {
    SLIM_ASSIGN(calibration_.batches[i], kept(std::move(made)));
    return {};
  };
  return runner_.run(where, calibration_.batches.size(), batches(), pass, keep);
}

ForwardRunner::Batch Propagation::batches() const {
  return [this](size_t i) -> const Carry& { return calibration_.batches[i]; };
}

// ---- between blocks --------------------------------------------------------------------------------------------------

/// Stores the latest batch's inputs of regions that are replayed where batches are stored: in memory or in the spill file.
Status Propagation::keep_region_inputs(BlockExec& exec) {
  for (auto& [region, inputs] : exec.region_inputs()) {
    SLIM_ASSIGN(const Carry stored, spill_.store({{"input", inputs.back()}}));
    inputs.back() = stored.at("input");
  }
  return {};
}

/// Dense and aligned, as what a resumed run reads from a file: both must round alike.
Result<Carry> Propagation::kept(Carry carry) const {
  carry = carry_on(carry, at::kCPU);
  for (auto& [key, tensor] : carry) {
    if (!tensor.is_contiguous() || tensor.storage_offset() != 0)
      tensor = tensor.clone(at::MemoryFormat::Contiguous);
  }
  return spill_.store(std::move(carry));
}

}  // namespace slim
