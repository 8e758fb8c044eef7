#include "model/model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <set>

#include "plugin/guard.h"
#include "util/device_moves.h"

namespace slim {
namespace {

constexpr std::string_view kHeadStage = "head";

bool finite(const Carry& carry) {
  const auto hidden = carry.find("hidden");
  return hidden == carry.end() || at::isfinite(hidden->second).all().item<bool>();
}

/// What arises between blocks, and is not finite, comes from a tensor outside them: embeddings, projections.
Status damaged_input(const Model& model, const std::string& block) {
  const std::string message = "the input of " + block + " holds NaN or Inf";
  for (const std::string& name : model.plan.globals) {
    const auto tensor = model.weights->tensor(name);
    if (tensor.ok() && tensor->is_floating_point() && !at::isfinite(*tensor).all().item<bool>()) {
      return {Code::kNumeric, message + ", as tensor " + name + " does; download the checkpoint again"};
    }
  }
  return {Code::kNumeric, message + "; compute with --dtype float32"};
}

/// An adapter that was named, but is not the one that serves the checkpoint, is the likely reason of an error.
Status suspect_adapter(Status status, const Model& model, PluginRegistry& registry) {
  const auto served = adapter_name(model.weights->checkpoint(), "", registry);
  if (!served.ok() || *served == model.adapter_id) return status;
  return Status(status.code(), status.message() + "; adapter '" + *served +
                                   "' serves this checkpoint's model_type: leave out --adapter " +
                                   model.adapter_id);
}

int64_t bytes_of(const BlockWeights& weights) {
  int64_t bytes = 0;
  for (const auto& tensor : weights.weight) bytes += tensor.nbytes();
  for (const auto& [name, tensor] : weights.params) bytes += tensor.nbytes();
  return bytes;
}

}  // namespace

Result<Model> Model::open(const std::string& folder, const std::string& adapter, PluginRegistry& registry) {
  Model model;
  SLIM_ASSIGN(model.weights, WeightSource::open(folder, registry));
  SLIM_ASSIGN(model.adapter_id, adapter_name(model.weights->checkpoint(), adapter, registry));
  SLIM_ASSIGN(model.adapter, registry.adapter(model.adapter_id));
  auto plan = guarded(model.adapter_id, [&] {
    return model.adapter->plan(model.weights->checkpoint().config_json(), model.weights->logical());
  });
  if (!plan.ok()) return suspect_adapter(plan.status(), model, registry);
  model.plan = *std::move(plan);
  SLIM_TRY(check_complete(model.plan, model.weights->logical()).in(model.adapter_id));
  return model;
}

Result<at::ScalarType> Model::compute_dtype(const std::string& name) const {
  if (name == "auto") return weights->dtype();
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  return Status(Code::kInvalidArgument,
                "dtype '" + name + "' is unknown; use auto, float32, bfloat16 or float16");
}

Result<Carry> Model::begin(std::span<const Sample> samples, BlockExec& exec) const {
  exec.set_block(nullptr, nullptr);
  return guarded(adapter_id, [&]() -> Result<Carry> {
    SLIM_ASSIGN(Carry carry, adapter->begin(samples, exec));
    if (!finite(carry)) return damaged_input(*this, plan.blocks.front().name);
    return carry;
  });
}

Status Model::enter(const BlockPlan& block, BlockExec& exec, Carry& carry) const {
  exec.set_block(nullptr, nullptr);
  return guarded(adapter_id + ": entering " + block.stage, [&]() -> Status {
    SLIM_TRY(adapter->enter(block.stage, exec, carry));
    return finite(carry) ? Status{} : damaged_input(*this, block.name);
  });
}

Status Model::forward(const BlockPlan& block, BlockExec& exec, Carry& carry) const {
  return guarded(adapter_id + ": " + block.name, [&]() -> Status {
    SLIM_TRY(adapter->forward(block, exec, carry));
    return finite(carry) ? Status{} : Status(Code::kNumeric, "the output holds NaN or Inf");
  });
}

bool starts_stage(const ModelPlan& plan, const BlockPlan& block) {
  return block.index > 0 && plan.blocks[block.index - 1].stage != block.stage;
}

Status check_complete(const ModelPlan& plan, const std::map<std::string, TensorSpec>& tensors) {
  std::set<std::string> planned;
  std::set<std::string> sliced;  // packed and fused tensors: many layers, one tensor
  const auto claim = [&](const std::string& name) -> Status {
    if (!tensors.contains(name))
      return {Code::kInternal, "the plan names " + name + ", which the checkpoint does not hold"};
    if (!planned.insert(name).second) return {Code::kInternal, "the plan names " + name + " twice"};
    return {};
  };
  for (const std::string& name : plan.globals) SLIM_TRY(claim(name));
  for (const std::string& name : plan.beside) SLIM_TRY(claim(name));
  for (const LeftOut& left : plan.left_out) SLIM_TRY(claim(left.tensor));
  for (const BlockPlan& block : plan.blocks) {
    for (const std::string& name : block.params) SLIM_TRY(claim(name));
    for (const Layer& layer : block.layers) {
      if (!layer.bias.empty()) SLIM_TRY(claim(layer.bias));
      if (!layer.tied && sliced.insert(layer.weight.tensor).second) SLIM_TRY(claim(layer.weight.tensor));
    }
  }
  for (const auto& [name, spec] : tensors) {
    if (!planned.contains(name)) return {Code::kInternal, "the plan leaves out tensor " + name};
  }
  return {};
}

ForwardPass::ForwardPass(const Model& model, const ForwardRunner::Options& options, int64_t cache_bytes,
                         Notes& notes)
    : model_(model), runner_(*model.weights, options, notes), cache_bytes_(cache_bytes) {}

Result<const BlockWeights*> ForwardPass::weights(const BlockPlan& block) {
  if (const auto it = cached_.find(block.index); it != cached_.end()) return &it->second;
  current_ = {};
  SLIM_ASSIGN(BlockWeights loaded, model_.weights->load(block));
  SLIM_ASSIGN(current_, guarded(block.name, [&]() -> Result<BlockWeights> {
                return moved(std::move(loaded), exec().device());
              }));
  const int64_t bytes = bytes_of(current_);
  if (cached_bytes_ + bytes > cache_bytes_) return &current_;
  cached_bytes_ += bytes;
  return &(cached_[block.index] = std::move(current_));
}

Status ForwardPass::run(std::vector<Carry>& batches, std::string_view first_stage,
                        std::vector<MemoryCache>* caches, Progress* progress) {
  const c10::NoGradGuard no_grad;
  bool reached = first_stage.empty();
  for (const BlockPlan& block : model_.plan.blocks) {
    if (block.stage == kHeadStage) break;
    const bool first_here = !reached && block.stage == first_stage;
    reached = reached || first_here;
    if (!reached) continue;
    SLIM_ASSIGN(const BlockWeights* loaded, weights(block));
    const bool enters = !first_here && starts_stage(model_.plan, block);
    const auto pass = [&](size_t i, BlockExec& exec, Carry& there) -> Status {
      if (enters) SLIM_TRY(model_.enter(block, exec, there));
      exec.set_block(&block, loaded);
      exec.set_cache(caches ? &(*caches)[i] : nullptr);
      const MemoryCache before = caches && !exec.device().is_cpu() ? (*caches)[i] : MemoryCache();
      Status status = model_.forward(block, exec, there);
      if (!status.ok() && caches && !exec.device().is_cpu()) (*caches)[i] = before;  // the host begins anew
      SLIM_TRY(std::move(status));
      return progress && progress->cancelled() ? Status(Code::kCancelled, "interrupted") : Status{};
    };
    const auto keep = [&](size_t i, Carry made) {
      batches[i] = std::move(made);
      return Status{};
    };
    SLIM_TRY(runner_.run(
        block.name, batches.size(), [&](size_t i) -> const Carry& { return batches[i]; }, pass, keep));
    if (progress) progress->step(block.name);
  }
  runner_.release_globals();
  return {};
}

Result<at::Tensor> ForwardPass::logits(const Carry& carry, const at::Tensor& rows) {
  const c10::NoGradGuard no_grad;
  Carry head = carry_on(carry, exec().device());
  head["logit_rows"] = rows;
  for (const BlockPlan& block : model_.plan.blocks) {
    if (block.stage != kHeadStage) continue;
    if (starts_stage(model_.plan, block)) SLIM_TRY(model_.enter(block, exec(), head));
    SLIM_ASSIGN(const BlockWeights* loaded, weights(block));
    exec().set_block(&block, loaded);
    SLIM_TRY(model_.forward(block, exec(), head));
  }
  return head["logits"].to(at::kFloat);
}

}  // namespace slim
