#include "solve/output_run.h"

#include <ATen/ATen.h>

#include <optional>

#include "model/device_memory.h"
#include "plugin/guard.h"
#include "quant/quantize.h"
#include "slim/phase.hpp"
#include "slim/quant.hpp"
#include "solve/equivalence.h"
#include "util/device_moves.h"

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

/// As much noise as weights, and nearly so: rounding to two bits leaves 0.8. Weights too small for scales in fp16 end here.
constexpr double kNoise = 0.9;

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

}  // namespace

Status OutputRun::check_cancelled(const std::string& where) {
  return progress_.cancelled() ? Status(Code::kCancelled, "interrupted in " + where) : Status{};
}

Status OutputRun::make_block(BlockAtWork& work) {
  if (!output_.plan.changes(work.plan())) return writer_.copy_block(work.plan());
  SLIM_TRY(transform(work));
  if (work.statistics->stale()) SLIM_TRY(collect_stale(work));
  SLIM_TRY(solve(work));
  SLIM_TRY(writer_.write_changed(work.state));
  if (output_.plan.kv_cache) SLIM_TRY(write_cache_scales(work));
  report_.record_experts(work.plan(), *work.statistics);
  writing_ = false;
  return writer_.copy_block(work.plan());
}

/// Function-preserving changes, and the proof that they are: on a batch at the block's entry, where there is one.
Status OutputRun::transform(BlockAtWork& work) {
  if (work.statistics->empty()) return {};
  std::optional<EquivalenceProof> proof;
  const auto begin_proof = [&]() -> Status {
    if (proof || work.batches().empty()) return {};
    const Carry& smallest = work.batches()[work.propagation->calibration().smallest];
    SLIM_ASSIGN(proof, EquivalenceProof::before(model_, work.state, smallest, work.device()));
    return {};
  };
  Folds folds;
  bool function_changed = false;
  std::optional<PhaseTimer> timer(Phase::kScaleSearch);
  SLIM_TRY(transform_parts(work, begin_proof, folds, function_changed));
  timer.reset();
  if (folds.empty() || function_changed) return {};
  if (proof)
    SLIM_TRY(proof->check(work.state, folds, output_.plan));
  else
    notes().note("folded scales not proven on samples", work.plan().name, "the statistics come from a file");
  report_.record_proof(folds.size(), proof ? proof->error() : 0);
  return {};
}

Status OutputRun::transform_parts(BlockAtWork& work, const std::function<Status()>& begin_proof, Folds& folds,
                                  bool& function_changed) {
  for (size_t i = 0; i < output_.recipe.parts.size(); ++i) {
    const RecipePart& part = output_.recipe.parts[i];
    BlockTransform context(model_, output_.plan, i, scale_dtype(part.scheme), work.state, *work.statistics,
                           *work.exec, work.batches(), notes());
    if (!function_changed) context.before_first_fold(begin_proof);
    for (size_t k = 0; k < part.algorithms.size(); ++k) {
      SLIM_TRY(check_cancelled(work.plan().name));
      SLIM_TRY(guarded(part.algorithm_ids[k] + ": " + work.plan().name,
                       [&] { return part.algorithms[k]->transform(context); }));
    }
    folds.insert(folds.end(), context.folds().begin(), context.folds().end());
    function_changed = function_changed || context.function_changed();
  }
  return {};
}

/// Another pass over the transformed block, for statistics that could not follow its folds (histograms).
Status OutputRun::collect_stale(BlockAtWork& work) {
  if (work.batches().empty()) {
    return {Code::kInvalidArgument,
            work.plan().name +
                ": a statistic of the file cannot follow a folded scale and must be collected "
                "anew; run with --calib and without --statistics, or choose ranges by minmax"};
  }
  const auto fresh = work.statistics->renewed();
  SLIM_TRY(work.propagation->collect(work.state, *fresh, *work.exec, nullptr));
  work.statistics->renew(*fresh);
  return {};
}

/// Layers that read one input are solved together, and then at once on their way: their statistics, often the largest tensors of
/// all, are not needed any more. Layers that engines merge read one input.
Status OutputRun::solve(BlockAtWork& work) {
  std::map<PortId, std::vector<const Layer*>> left;
  for (const Layer& layer : work.plan().layers) {
    if (decision(work.plan(), layer).scheme) left[layer.input].push_back(&layer);
  }
  for (const Layer& layer : work.plan().layers) {
    const auto readers = left.find(layer.input);
    if (readers == left.end()) continue;
    SLIM_TRY(solve_readers(work, readers->second));
    work.statistics->release(layer.input);
    left.erase(readers);
  }
  return {};
}

Status OutputRun::solve_readers(BlockAtWork& work, const std::vector<const Layer*>& layers) {
  std::map<size_t, TensorMap> port_caches;
  std::vector<Solved> solved;
  for (const Layer* layer : layers) {
    SLIM_TRY(check_cancelled(layer->name));
    TensorMap& port_cache = port_caches[decision(work.plan(), *layer).part];
    auto result = solve_layer(work, *work.statistics, work.device(), *layer, port_cache);
    if (!result.ok() && result.status().code() == Code::kOutOfMemory && !work.device().is_cpu()) {
      port_caches.clear();  // what they hold may be what is in the way
      result = solve_on_host(work, *layer, result.status());
    }
    SLIM_ASSIGN(solved.emplace_back(), std::move(result));
  }
  port_caches.clear();
  writing_ = true;
  for (size_t i = 0; i < layers.size(); ++i) SLIM_TRY(commit(work, *layers[i], std::move(solved[i])));
  return {};
}

/// One layer, and how far it moved. The result lies on the host, where the others wait with it for the block's end.
Result<Solved> OutputRun::solve_layer(const BlockAtWork& work, const StatisticSet& statistics,
                                      at::Device device, const Layer& layer, TensorMap& port_cache) {
  const PhaseTimer timer(Phase::kRounding);
  const LayerDecision& decided = decision(work.plan(), layer);
  const RecipePart& part = output_.recipe.parts[decided.part];
  Algorithm* solver = part.solver();
  LayerSolve context(output_.plan, work.state, layer, statistics, scale_dtype(*decided.scheme),
                     output_.config.seed, port_cache, notes(), device);
  return guarded(part.solver_id() + ": " + layer.name, [&]() -> Result<Solved> {
    SLIM_ASSIGN(Solved solved, solver ? solver->solve(context) : quant::round_to_nearest(context));
    const double error = relative_error(context, solved.weight, device);
    notes().metric(layer.name, "relative_error", error);
    if (error > kNoise) {
      notes().note(
          "layers that came out as noise: look at their weights, or take another format or more bits",
          layer.name, "relative error " + std::to_string(error));
    }
    return moved(std::move(solved), at::kCPU);
  });
}

Result<Solved> OutputRun::solve_on_host(const BlockAtWork& work, const Layer& layer, const Status& why) {
  release_device_memory(work.state.weights.weight[layer.id].device());
  notes().note("computed on the CPU: out of the device's memory", layer.name, why.message());
  SLIM_ASSIGN(const auto on_host, work.statistics->copied(layer.input, at::kCPU));
  TensorMap port_cache;
  return solve_layer(work, *on_host, at::kCPU, layer, port_cache);
}

/// The layer as engines will compute it, for the next block's input; and its tensors on their way to the disk.
Status OutputRun::commit(BlockAtWork& work, const Layer& layer, Solved solved) {
  BlockState& state = work.state;
  const at::Device device = work.device();
  const Scheme& scheme = *decision(work.plan(), layer).scheme;
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
  // with what a third algorithm of the chain may have left elsewhere
  return writer_.write_layer(layer, scheme, moved(std::move(solved), at::kCPU));
}

/// What the next pass computes with: on the device, or where that is full on the host, from where it is moved at each use.
at::Tensor OutputRun::decoded_on(at::Device device, const Solved& solved) const {
  const at::ScalarType dtype = model_.weights->dtype();
  const auto there = guarded("moving between host and device", [&]() -> Result<at::Tensor> {
    return decoded(moved(solved, device).weight).to(dtype);
  });
  return there.ok() ? *there : decoded(moved(solved, at::kCPU).weight).to(dtype);
}

Status OutputRun::write_cache_scales(const BlockAtWork& work) {
  for (const CacheSite& site : work.plan().caches) {
    SLIM_ASSIGN(const at::Tensor key, cache_scale(*work.statistics, site.key, site.name + ": keys"));
    SLIM_ASSIGN(const at::Tensor value, cache_scale(*work.statistics, site.value, site.name + ": values"));
    SLIM_ASSIGN(const TensorMap tensors, guarded(output_.recipe.format_id, [&] {
                  return output_.recipe.format->encode_cache(site, moved(key, at::kCPU),
                                                             moved(value, at::kCPU), output_.plan.dtype);
                }));
    for (const auto& [name, tensor] : tensors) SLIM_TRY(writer_.write_tensor(name, tensor));
    notes().metric(site.name, "key cache scale", key.item<float>());
    notes().metric(site.name, "value cache scale", value.item<float>());
  }
  return {};
}

}  // namespace slim
