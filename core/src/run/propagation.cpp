#include "run/propagation.h"

#include <ATen/ATen.h>

#include "run/device_memory.h"
#include "run/device_moves.h"
#include "slim/phase.hpp"

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

}  // namespace

Propagation::Propagation(const Options& options, const Model& model, Spill spill, Notes& notes,
                         Progress& progress)
    : options_(options),
      model_(model),
      spill_(std::move(spill)),
      notes_(notes),
      progress_(progress),
      exec_(*model.weights, options.dtype, options.device),
      host_exec_(*model.weights, options.dtype, at::kCPU) {
  exec_.set_all_experts(options.all_experts);
  host_exec_.set_all_experts(options.all_experts);
}

// ---- the entry of the model ------------------------------------------------------------------------------------------

Status Propagation::begin(const RunConfig& config) {
  SLIM_ASSIGN(calibration_, calibrate_input(config, model_, exec_, progress_, spill_));
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
  return replace_each(block.name,
                      [&](BlockExec& exec, Carry& there) { return model_.enter(block, exec, there); });
}

Status Propagation::advance(const BlockState& state) {
  return replace_each(state.plan->name,
                      [&](BlockExec& exec, Carry& there) { return forward(state, exec, there); });
}

Status Propagation::collect(const BlockState& state, StatisticSet& statistics, BlockExec& exec,
                            std::vector<Carry>* outputs) {
  exec.region_inputs().clear();
  if (statistics.empty() && !outputs) return {};
  exec.set_statistics(&statistics);
  const auto pass = [&](size_t i, Carry& there, const Status& moved) -> Status {
    SLIM_TRY(moved);
    SLIM_TRY(forward(state, exec, there));
    SLIM_TRY(keep_region_inputs(exec));
    Spill::release(calibration_.batches[i]);
    return {};
  };
  BatchStream::Keep keep;
  if (outputs) {
    outputs->resize(calibration_.batches.size());
    keep = [&](size_t i, Carry output) -> Status {
      SLIM_ASSIGN((*outputs)[i], kept(std::move(output)));
      return {};
    };
  }
  SLIM_TRY(stream(pass, keep).run(calibration_.batches.size(), exec.device(), options_.overlap));
  exec.set_statistics(nullptr);
  return {};
}

Status Propagation::forward(const BlockState& state, BlockExec& exec, Carry& carry) {
  const PhaseTimer timer(Phase::kForward);
  exec.set_block(state.plan, &state.weights);
  SLIM_TRY(blame_weights(state, model_.forward(*state.plan, exec, carry)));
  return progress_.cancelled() ? Status(Code::kCancelled, "interrupted in " + state.plan->name) : Status{};
}

/// Every batch becomes what `pass` makes of it: on the device, or on the host where the device's memory does not do for it.
Status Propagation::replace_each(const std::string& where,
                                 const std::function<Status(BlockExec&, Carry&)>& pass) {
  const auto on_either = [&](size_t i, Carry& there, const Status& moved) {
    Status status = moved.ok() ? pass(exec_, there) : moved;
    if (status.code() != Code::kOutOfMemory || exec_.device().is_cpu()) return status;
    notes_.note("batches computed on the CPU: out of the device's memory", where, status.message());
    there = calibration_.batches[i];
    release_device_memory(exec_.device());
    status = pass(host_exec_, there);
    host_exec_.release_globals();
    return status;
  };
  const auto keep = [&](size_t i, Carry made) -> Status {
    SLIM_ASSIGN(calibration_.batches[i], kept(std::move(made)));
    return {};
  };
  return stream(on_either, keep).run(calibration_.batches.size(), exec_.device(), options_.overlap);
}

BatchStream Propagation::stream(BatchStream::Pass pass, BatchStream::Keep keep) const {
  return {[this](size_t i) -> const Carry& { return calibration_.batches[i]; }, std::move(pass),
          std::move(keep)};
}

// ---- between blocks --------------------------------------------------------------------------------------------------

/// What a batch has put into regions that are replayed lies where batches do.
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

void Propagation::reset() {
  for (BlockExec* exec : {&exec_, &host_exec_}) {
    exec->set_statistics(nullptr);
    exec->set_overrides(nullptr);
    exec->region_inputs().clear();
  }
}

void Propagation::release_globals() {
  exec_.release_globals();
  host_exec_.release_globals();
}

}  // namespace slim
