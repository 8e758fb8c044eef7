#include "run/output_run.h"

#include <ATen/ATen.h>

#include "plugin/guard.h"
#include "quant/quantize.h"
#include "run/device_memory.h"
#include "run/device_moves.h"
#include "run/equivalence.h"
#include "run/output_config.h"
#include "run/spill.h"
#include "slim/phase.hpp"
#include "slim/quant.hpp"

namespace slim {
namespace {

constexpr double kLargestE4M3 = 448;

/// The scale of an E4M3 cache of what a port has shown.
Result<at::Tensor> cache_scale(const StatisticSet& statistics, PortId port, const std::string& what) {
  const auto* moments = static_cast<const ChannelMoments*>(statistics.find(port, ChannelMoments::kId));
  if (!moments || moments->tokens <= 0) {
    return Status(
        Code::kNumeric,
        what + ": no calibration token reached them, so they have no scale; calibrate on samples that do");
  }
  const at::Tensor scale = (moments->abs_max().max().to(at::kFloat) / kLargestE4M3).reshape({1});
  const auto value = scale.item<float>();
  if (value > 0 && std::isfinite(value)) return scale;
  return Status(Code::kNumeric,
                what + ": the calibration saw " + (value == 0 ? "only zeros" : "NaN or Inf") +
                    ", so they have no scale; leave out kv_cache, or calibrate on other samples");
}

at::Tensor decoded(const Compressed& result) {
  const auto* quantized = std::get_if<Quantized>(&result);
  return quantized ? quant::decode(*quantized) : std::get<Dense>(result).weight;
}

ops::RoundingError error_sums(const at::Tensor& weight, const Compressed& result) {
  const auto* quantized = std::get_if<Quantized>(&result);
  if (quantized && !quantized->group_index.defined()) return quant::rounding_error(weight, *quantized);
  const at::Tensor before = weight.to(at::kFloat);
  return {(decoded(result) - before).square().sum(at::kDouble).item<double>(),
          before.square().sum(at::kDouble).item<double>()};
}

/// |ŵ - w| / |w|
double relative_error(const LayerSolve& context, const Compressed& result, at::Device device) {
  const auto* quantized = std::get_if<Quantized>(&result);
  const auto told = quantized ? context.error_of(quantized->codes) : std::nullopt;
  const ops::RoundingError sums =
      told ? *told
           : error_sums(context.stored_weight(), moved(Solved{result, {}, {}, {}, {}}, device).weight);
  return sums.weight > 0 ? std::sqrt(sums.error / sums.weight) : 0.0;
}

/// What a result keeps in memory until it is written.
int64_t bytes_of(const Solved& solved) {
  std::vector<at::Tensor> tensors = {solved.bias, solved.input_scale, solved.input_zero};
  if (const auto* quantized = std::get_if<Quantized>(&solved.weight)) {
    tensors.insert(tensors.end(),
                   {quantized->codes, quantized->scale, quantized->zero, quantized->group_index});
  } else {
    tensors.push_back(std::get<Dense>(solved.weight).weight);
  }
  for (const auto& [name, tensor] : solved.extra) tensors.push_back(tensor);
  size_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += tensor.defined() ? tensor.nbytes() : 0;
  return static_cast<int64_t>(bytes);
}

}  // namespace

Status OutputRun::create(bool resume) {
  const RunConfig& config = plan_.config;
  WriterOptions options;
  options.folder = config.output;
  options.max_shard_size = config.max_shard_size;
  options.stem = plan_.recipe.format->weights_stem(plan_.recipe.scheme);
  options.overwrite = config.overwrite;
  options.inputs = {config.model};
  options.checksums = true;
  options.resume = resume;
  SLIM_ASSIGN(writer_, CheckpointWriter::create(options, plan_.plan.outputs));
  return {};
}

Status OutputRun::adopt(const std::map<std::string, uint64_t>& tensors) {
  for (const auto& [name, checksum] : tensors) written_.insert(name);
  return writer_->adopt(tensors);
}

Status OutputRun::check_cancelled(const std::string& where) {
  return progress_.cancelled() ? Status(Code::kCancelled, "interrupted in " + where) : Status{};
}

Status OutputRun::make_block(BlockState& state, StatisticSet& statistics, BlockExec& exec,
                             const Calibration& calibration) {
  SLIM_TRY(transform(state, statistics, exec, calibration));
  if (statistics.stale()) SLIM_TRY(collect_stale(state, statistics, exec, calibration));
  SLIM_TRY(solve(state, statistics, exec.device()));
  SLIM_TRY(write_changed(state));
  if (plan_.plan.kv_cache) SLIM_TRY(write_cache_scales(*state.plan, statistics));
  report_.record_experts(*state.plan, statistics);
  writing_ = false;
  return copy_block(*state.plan);
}

/// Function-preserving changes, and the proof that they are: on a batch at the block's entry, where there is one.
Status OutputRun::transform(BlockState& state, StatisticSet& statistics, BlockExec& exec,
                            const Calibration& calibration) {
  if (statistics.empty()) return {};
  std::optional<EquivalenceProof> proof;
  const auto begin_proof = [&]() -> Status {
    if (proof || calibration.batches.empty()) return {};
    SLIM_ASSIGN(proof, EquivalenceProof::before(model_, state, calibration.batches[calibration.smallest],
                                                exec.device()));
    return {};
  };
  Folds folds;
  bool function_changed = false;
  std::optional<PhaseTimer> timer(Phase::kScaleSearch);
  SLIM_TRY(transform_parts(state, statistics, exec, calibration, begin_proof, folds, function_changed));
  timer.reset();
  if (folds.empty() || function_changed) return {};
  if (proof)
    SLIM_TRY(proof->check(state, folds, plan_.plan));
  else
    notes().note("folded scales not proven on samples", state.plan->name, "the statistics come from a file");
  report_.record_proof(folds.size(), proof ? proof->error() : 0);
  return {};
}

Status OutputRun::transform_parts(BlockState& state, StatisticSet& statistics, BlockExec& exec,
                                  const Calibration& calibration, const std::function<Status()>& begin_proof,
                                  Folds& folds, bool& function_changed) {
  for (size_t i = 0; i < plan_.recipe.parts.size(); ++i) {
    const RecipePart& part = plan_.recipe.parts[i];
    BlockTransform context(model_, plan_.plan, i, scale_dtype(part.scheme), state, statistics, exec,
                           calibration.batches, notes());
    if (!function_changed) context.before_first_fold(begin_proof);
    for (size_t k = 0; k < part.algorithms.size(); ++k) {
      SLIM_TRY(check_cancelled(state.plan->name));
      SLIM_TRY(guarded(part.algorithm_ids[k] + ": " + state.plan->name,
                       [&] { return part.algorithms[k]->transform(context); }));
    }
    folds.insert(folds.end(), context.folds().begin(), context.folds().end());
    function_changed = function_changed || context.function_changed();
  }
  return {};
}

/// Another pass over the transformed block, for statistics that could not follow its folds (histograms).
Status OutputRun::collect_stale(const BlockState& state, StatisticSet& statistics, BlockExec& exec,
                                const Calibration& calibration) {
  if (calibration.batches.empty()) {
    return {Code::kInvalidArgument,
            state.plan->name +
                ": a statistic of the file cannot follow a folded scale and must be collected "
                "anew; run with --calib and without --statistics, or choose ranges by minmax"};
  }
  const auto fresh = statistics.renewed();
  const PhaseTimer timer(Phase::kForward);
  exec.set_block(state.plan, &state.weights);
  exec.set_statistics(fresh.get());
  Status status;
  for (size_t i = 0; i < calibration.batches.size() && status.ok(); ++i) {
    Carry carry = carry_on(calibration.batches[i], exec.device());
    status = model_.forward(*state.plan, exec, carry);
    Spill::release(calibration.batches[i]);
  }
  exec.set_statistics(nullptr);
  if (status.ok()) statistics.renew(*fresh);
  return status;
}

/// Layers that read one input are solved together, and then at once on their way: their statistics, often the largest tensors of
/// all, are not needed any more. Layers that engines merge read one input.
Status OutputRun::solve(BlockState& state, StatisticSet& statistics, at::Device device) {
  const BlockPlan& block = *state.plan;
  std::map<PortId, std::vector<const Layer*>> left;
  for (const Layer& layer : block.layers) {
    if (plan_.plan.scheme(block.index, layer.id)) left[layer.input].push_back(&layer);
  }
  for (const Layer& layer : block.layers) {
    const auto readers = left.find(layer.input);
    if (readers == left.end()) continue;
    SLIM_TRY(solve_readers(state, readers->second, statistics, device));
    statistics.release(layer.input);
    left.erase(readers);
  }
  return {};
}

Status OutputRun::solve_readers(BlockState& state, const std::vector<const Layer*>& layers,
                                const StatisticSet& statistics, at::Device device) {
  std::map<size_t, TensorMap> port_caches;
  std::vector<Solved> solved;
  for (const Layer* layer : layers) {
    const LayerDecision& decision = plan_.plan.layers[state.plan->index][layer->id];
    SLIM_TRY(check_cancelled(layer->name));
    auto result = solve_layer(state, *layer, statistics, device, port_caches[decision.part]);
    if (!result.ok() && result.status().code() == Code::kOutOfMemory && !device.is_cpu()) {
      port_caches.clear();  // what they hold may be what is in the way
      result = solve_on_host(state, *layer, statistics, result.status());
    }
    SLIM_ASSIGN(solved.emplace_back(), std::move(result));
  }
  port_caches.clear();
  writing_ = true;
  for (size_t i = 0; i < layers.size(); ++i)
    SLIM_TRY(commit(state, *layers[i], std::move(solved[i]), device));
  return {};
}

/// One layer, and how far it moved. The result lies on the host, where the others wait with it for the block's end.
Result<Solved> OutputRun::solve_layer(const BlockState& state, const Layer& layer,
                                      const StatisticSet& statistics, at::Device device,
                                      TensorMap& port_cache) {
  const PhaseTimer timer(Phase::kRounding);
  const LayerDecision& decision = plan_.plan.layers[state.plan->index][layer.id];
  const RecipePart& part = plan_.recipe.parts[decision.part];
  Algorithm* solver = part.solver();
  LayerSolve context(plan_.plan, state, layer, statistics, scale_dtype(*decision.scheme), plan_.config.seed,
                     port_cache, notes(), device);
  return guarded(part.solver_id() + ": " + layer.name, [&]() -> Result<Solved> {
    SLIM_ASSIGN(Solved solved, solver ? solver->solve(context) : quant::round_to_nearest(context));
    notes().metric(layer.name, "relative_error", relative_error(context, solved.weight, device));
    return moved(std::move(solved), at::kCPU);
  });
}

Result<Solved> OutputRun::solve_on_host(const BlockState& state, const Layer& layer,
                                        const StatisticSet& statistics, const Status& why) {
  release_device_memory(state.weights.weight[layer.id].device());
  notes().note("computed on the CPU: out of the device's memory", layer.name, why.message());
  SLIM_ASSIGN(const auto on_host, statistics.copied(layer.input, at::kCPU));
  TensorMap port_cache;
  return solve_layer(state, layer, *on_host, at::kCPU, port_cache);
}

/// The layer as engines will compute it, for the next block's input; and its tensors on their way to the disk.
Status OutputRun::commit(BlockState& state, const Layer& layer, Solved solved, at::Device device) {
  const Scheme& scheme = *plan_.plan.scheme(state.plan->index, layer.id);
  at::Tensor& weight = state.weights.weight[layer.id];
  if (const auto* quantized = std::get_if<Quantized>(&solved.weight);
      quantized && quant::has_scattered_groups(*quantized)) {
    report_.record_scattered_groups();
  }
  weight = at::Tensor();
  if (state.runs_again) weight = decoded_on(device, solved);
  state.changed_layers.erase(layer.id);
  if (scheme.input)
    state.weights.activation[layer.id] = ActivationQuantization{
        *scheme.input, moved(solved.input_scale, device), moved(solved.input_zero, device)};
  if (solved.bias.defined() && !layer.bias.empty()) {
    state.weights.bias[layer.id] = solved.bias.to(device, state.weights.bias[layer.id].scalar_type());
    state.changed_tensors.insert(layer.bias);
  }
  if (!layer.bias.empty())
    solved.bias = state.weights.bias[layer.id].to(at::kFloat);  // formats that fold it into integers need it
  solved =
      moved(std::move(solved), at::kCPU);  // with what a third algorithm of the chain may have left elsewhere
  const int64_t bytes = bytes_of(solved);
  return jobs_.submit(bytes, [this, &layer, &scheme, solved = std::move(solved)]() -> Status {
    const PhaseTimer timer(Phase::kWriting);
    SLIM_ASSIGN(const TensorMap tensors, guarded(layer.name, [&] {
                  const PhaseTimer encoding(Phase::kEncoding);
                  return plan_.recipe.format->encode(layer, scheme, solved, model_.weights->dtype());
                }));
    for (const auto& [name, tensor] : tensors) SLIM_TRY(writer_->put(name, tensor));
    return {};
  });
}

/// What the next pass computes with: on the device, or where that is full on the host, from where it is moved at each use.
at::Tensor OutputRun::decoded_on(at::Device device, const Solved& solved) {
  const at::ScalarType dtype = model_.weights->dtype();
  const auto there = guarded("moving between host and device", [&]() -> Result<at::Tensor> {
    return decoded(moved(solved, device).weight).to(dtype);
  });
  return there.ok() ? *there : decoded(moved(solved, at::kCPU).weight).to(dtype);
}

at::Tensor OutputRun::in_model_dtype(const at::Tensor& weight) {
  const at::ScalarType dtype = model_.weights->dtype();
  const auto there =
      guarded("moving between host and device", [&]() -> Result<at::Tensor> { return weight.to(dtype); });
  return there.ok() ? *there : weight.to(at::kCPU, dtype);
}

Status OutputRun::put_later(const std::string& name, const at::Tensor& made) {
  written_.insert(name);
  const at::Tensor tensor = moved(made, at::kCPU);
  return jobs_.submit(static_cast<int64_t>(tensor.nbytes()), [this, name, tensor] {
    const PhaseTimer timer(Phase::kWriting);
    return writer_->put(name, tensor);
  });
}

/// Tensors that stay in float but were changed by a fold, and float layers cut out of a tensor that is replaced.
Status OutputRun::write_changed(BlockState& state) {
  const BlockPlan& block = *state.plan;
  std::map<std::string, at::Tensor> assembled;  // float tensors that several layers are slices of
  for (const Layer& layer : block.layers) {
    const LayerDecision& decision = plan_.plan.layers[block.index][layer.id];
    at::Tensor& weight = state.weights.weight[layer.id];
    if (state.changed_tensors.contains(layer.bias))
      SLIM_TRY(put_later(layer.bias, state.weights.bias[layer.id]));
    if (decision.scheme) continue;
    const bool changed = state.changed_layers.contains(layer.id);
    if (!decision.outputs.empty()) {
      const TensorSpec& spec = decision.outputs.front();
      SLIM_TRY(put_later(spec.name, weight.to(*to_scalar_type(spec.dtype))));
    } else if (changed) {
      at::Tensor& whole = assembled[layer.weight.tensor];
      if (!whole.defined()) {
        SLIM_ASSIGN(whole, model_.weights->tensor(layer.weight.tensor));
      }
      at::Tensor target = layer.weight.index ? whole.select(0, *layer.weight.index) : whole;
      if (layer.weight.transposed) target = target.t();
      target.narrow(0, layer.weight.row_begin, layer.out).copy_(weight);
    }
    if (changed) weight = in_model_dtype(weight);
  }
  for (const auto& [name, tensor] : assembled) SLIM_TRY(put_later(name, tensor));
  for (const std::string& name : block.params) {
    if (state.changed_tensors.contains(name)) SLIM_TRY(put_later(name, state.weights.params.at(name)));
  }
  return {};
}

Status OutputRun::write_cache_scales(const BlockPlan& block, const StatisticSet& statistics) {
  for (const CacheSite& site : block.caches) {
    SLIM_ASSIGN(const at::Tensor key, cache_scale(statistics, site.key, site.name + ": keys"));
    SLIM_ASSIGN(const at::Tensor value, cache_scale(statistics, site.value, site.name + ": values"));
    SLIM_ASSIGN(const TensorMap tensors, guarded(plan_.recipe.format_id, [&] {
                  return plan_.recipe.format->encode_cache(site, moved(key, at::kCPU), moved(value, at::kCPU),
                                                           model_.weights->dtype());
                }));
    for (const auto& [name, tensor] : tensors) SLIM_TRY(put_later(name, tensor));
    notes().metric(site.name, "key cache scale", key.item<float>());
    notes().metric(site.name, "value cache scale", value.item<float>());
  }
  return {};
}

Status OutputRun::copy_later(const std::string& name) {
  if (plan_.plan.replaced.contains(name) || !written_.insert(name).second) return {};
  return jobs_.submit(0, [this, name] {
    const PhaseTimer timer(Phase::kWriting);
    return writer_->copy(name, model_.weights->checkpoint(), name);
  });
}

Status OutputRun::copy_block(const BlockPlan& block) {
  for (const std::string& name : block.params) SLIM_TRY(copy_later(name));
  for (const Layer& layer : block.layers) {
    if (!layer.tied) SLIM_TRY(copy_later(layer.weight.tensor));
    if (!layer.bias.empty()) SLIM_TRY(copy_later(layer.bias));
  }
  return {};
}

Status OutputRun::finish() {
  for (const std::string& name : model_.plan.globals) SLIM_TRY(copy_later(name));
  SLIM_TRY(jobs_.drain());
  OutputModel output = describe_output(model_, plan_.plan);
  output.scattered_groups = report_.scattered_groups();
  const Checkpoint& input = model_.weights->checkpoint();
  SLIM_ASSIGN(const std::string config_json,
              output_config(input.config_json(), *plan_.recipe.format, output));
  SLIM_ASSIGN(const auto side_files, plan_.recipe.format->side_files(output));
  SLIM_TRY(writer_->write_file("config.json", config_json));
  for (const std::string& name : input.side_files()) {
    if (name != "config.json" && !side_files.contains(name))
      SLIM_TRY(writer_->copy_file(name, input.folder() + "/" + name));
  }
  for (const auto& [name, text] : side_files) SLIM_TRY(writer_->write_file(name, text));
  return writer_->finish();
}

Report OutputRun::report(const Calibration& calibration, const std::string& products,
                         at::Device device) const {
  int64_t bytes = 0;
  for (const TensorSpec& spec : plan_.plan.outputs) bytes += byte_size(spec).value_or(0);
  return report_.finish(plan_.config, plan_.recipe, plan_.plan, calibration,
                        model_.weights->checkpoint().total_bytes(), bytes, products,
                        peak_device_memory(device));
}

}  // namespace slim
