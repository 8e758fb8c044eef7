#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <malloc.h>

#include <chrono>
#include <future>

#include "checkpoint/writer.h"
#include "plugin/guard.h"
#include "run/async_writer.h"
#include "run/block_context.h"
#include "run/calibration.h"
#include "run/commands.h"
#include "run/equivalence.h"
#include "run/output_config.h"
#include "run/run_report.h"
#include "slim/quant.hpp"

namespace slim {
namespace {

/// Tokens of the layer's distribution that stand behind every expert's own: enough for a usable Gram, too few to outweigh
/// what the expert saw.
constexpr double kExpertPriorTokens = 128;

/// One quantization run: opens and decides everything, then goes block by block.
class QuantizeRun {
 public:
  QuantizeRun(const RunConfig& config, PluginRegistry& registry, Progress& progress)
      : config_(config), registry_(registry), progress_(progress) {}

  Result<Report> run() {
    const c10::NoGradGuard no_grad;
    SLIM_TRY(open());
    SLIM_TRY(create_output());  // first: reading samples may take long
    if (needs_forward()) SLIM_TRY(read_samples());
    const auto& blocks = model_.plan.blocks;
    progress_.begin("quantizing", static_cast<int64_t>(blocks.size()));
    std::future<Result<BlockWeights>> next = load_ahead(0);
    for (const BlockPlan& block : blocks) {
      if (progress_.cancelled()) return Status(Code::kCancelled, "interrupted before " + block.name + "; nothing was written");
      BlockState state;
      state.plan = &block;
      if (next.valid()) {
        SLIM_ASSIGN(state.weights, next.get());
      }
      next = load_ahead(block.index + 1);
      SLIM_TRY(run_block(state));
      SLIM_TRY(output_.drain());  // a slow disk must not let finished blocks pile up
      state = {};
      malloc_trim(0);  // what the allocator keeps in fragments would grow with the number of blocks
      progress_.step(block.name);
    }
    return finish();
  }

 private:
  // ---- before any work ----
  Status open() {
    if (config_.output.empty()) return {Code::kInvalidArgument, "no output folder; pass --output"};
    if (config_.threads > 0) at::set_num_threads(config_.threads);
    SLIM_ASSIGN(recipe_, Recipe::make(config_, registry_));
    SLIM_ASSIGN(backend_, registry_.backend(config_.backend));
    SLIM_TRY(guarded(config_.backend, [&] { return backend_->open({}); }));
    SLIM_ASSIGN(model_, Model::open(config_.model, config_.adapter, registry_));
    SLIM_ASSIGN(plan_, make_run_plan(config_, model_, recipe_));
    SLIM_TRY(check_memory());
    SLIM_ASSIGN(const at::ScalarType dtype, model_.compute_dtype(config_.dtype));
    exec_ = std::make_unique<BlockExec>(*model_.weights, dtype);
    exec_->set_all_experts(config_.all_experts);
    scale_dtype_ = recipe_.format->scale_dtype(recipe_.scheme, model_.weights->dtype());
    find_last_observed();
    return {};
  }

  Status check_memory() const {
    const int64_t needed = peak_bytes(config_, model_, recipe_, plan_);
    if (config_.max_memory == 0 || needed <= config_.max_memory) return {};
    return {Code::kOutOfMemory, "the run takes about " + bytes_text(needed) + " of memory, run.max_memory allows " +
                                    bytes_text(config_.max_memory) +
                                    "; use fewer, shorter or smaller batches of samples (--num-samples, --max-seq-length, --batch-size), or allow more"};
  }

  std::unique_ptr<StatisticSet> observations(const BlockPlan& block) const {
    auto statistics = std::make_unique<StatisticSet>(block, calibration_.tokens());
    if (!plan_.quantizes(block.index)) return statistics;
    const auto schemes = plan_.schemes(block.index);
    for (const auto& algorithm : recipe_.algorithms) algorithm->observe(block, schemes, *statistics);
    return statistics;
  }

  void find_last_observed() {
    for (const BlockPlan& block : model_.plan.blocks) {
      if (!observations(block)->empty()) last_observed_ = block.index;
    }
  }
  bool needs_forward() const { return last_observed_ >= 0; }

  Status read_samples() {
    if (config_.calib.empty()) {
      return {Code::kInvalidArgument, recipe_.algorithm_ids.front() + " needs calibration data; pass --calib FILE or DIR"};
    }
    SLIM_ASSIGN(calibration_, calibrate_input(config_, model_, *exec_, progress_));
    return {};
  }

  Status create_output() {
    WriterOptions options;
    options.folder = config_.output;
    options.max_shard_size = config_.max_shard_size;
    options.stem = recipe_.format->weights_stem(recipe_.scheme);
    options.overwrite = config_.overwrite;
    options.inputs = {config_.model};
    SLIM_ASSIGN(writer_, CheckpointWriter::create(options, plan_.outputs));
    return {};
  }

  // ---- one block ----
  std::future<Result<BlockWeights>> load_ahead(size_t index) {
    const auto& blocks = model_.plan.blocks;
    if (index >= blocks.size()) return {};
    const BlockPlan& block = blocks[index];
    if (!plan_.quantizes(block.index) && block.index > last_observed_) return {};  // copied as bytes
    return std::async(std::launch::async, [this, &block] { return model_.weights->load(block); });
  }

  Status run_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    if (block.index <= last_observed_ && starts_stage(model_.plan, block)) {
      for (Carry& carry : calibration_.batches) SLIM_TRY(model_.enter(block, *exec_, carry));
    }
    if (plan_.quantizes(block.index)) {
      SLIM_TRY(quantize_block(state));
    } else {
      if (block.index < last_observed_) SLIM_TRY(advance(state));
      SLIM_TRY(copy_unchanged(state));
    }
    exec_->release_globals();
    return {};
  }

  Status quantize_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    const auto statistics = observations(block);
    std::vector<Carry> float_outputs;
    SLIM_TRY(collect(state, *statistics, float_outputs));
    SLIM_TRY(transform(state, *statistics));
    SLIM_TRY(solve(state, *statistics));
    SLIM_TRY(write_changed(state));
    SLIM_TRY(copy_unchanged(state));
    report_.record_experts(block, *statistics);
    if (block.index >= last_observed_) return {};
    if (config_.propagate == "quantized") return advance(state);
    calibration_.batches = std::move(float_outputs);
    return {};
  }

  /// The calibration pass: statistics, and with propagate = "float" also the next block's input.
  Status collect(const BlockState& state, StatisticSet& statistics, std::vector<Carry>& outputs) {
    exec_->region_inputs().clear();
    if (statistics.empty()) return {};
    exec_->set_statistics(&statistics);
    for (const Carry& carry : calibration_.batches) {
      Carry output = carry;
      SLIM_TRY(forward(state, output));
      if (config_.propagate == "float") outputs.push_back(std::move(output));
    }
    exec_->set_statistics(nullptr);
    statistics.finish(kExpertPriorTokens);
    return {};
  }

  Status transform(BlockState& state, StatisticSet& statistics) {
    if (statistics.empty()) return {};
    SLIM_ASSIGN(const auto proof, EquivalenceProof::before(model_, state, calibration_.batches[calibration_.smallest]));
    BlockTransform context(model_, plan_, recipe_, state, statistics, *exec_, calibration_.batches, report_.notes);
    for (size_t i = 0; i < recipe_.algorithms.size(); ++i) {
      SLIM_TRY(guarded(recipe_.algorithm_ids[i] + ": " + state.plan->name, [&] { return recipe_.algorithms[i]->transform(context); }));
    }
    exec_->region_inputs().clear();
    if (context.folds().empty() || context.function_changed()) return {};
    SLIM_TRY(proof.check(state, context, plan_, recipe_));
    report_.record_proof(context.folds().size(), proof.error());
    return {};
  }

  Status solve(BlockState& state, const StatisticSet& statistics) {
    const BlockPlan& block = *state.plan;
    Algorithm* solver = recipe_.solver();
    std::map<PortId, TensorMap> port_caches;
    std::vector<Solved> solved(block.layers.size());
    for (const Layer& layer : block.layers) {
      if (!plan_.scheme(block.index, layer.id)) continue;
      LayerSolve context(plan_, state, layer, statistics, scale_dtype_, config_.seed, port_caches[layer.input], report_.notes);
      SLIM_ASSIGN(solved[layer.id], guarded(recipe_.solver_id() + ": " + layer.name, [&] {
                    return solver ? solver->solve(context) : quant::round_to_nearest(context);
                  }));
    }
    for (const Layer& layer : block.layers) {
      if (plan_.scheme(block.index, layer.id)) SLIM_TRY(commit(state, layer, std::move(solved[layer.id])));
    }
    return {};
  }

  /// The layer as engines will compute it, for the next block's input; and its tensors on their way to the disk.
  Status commit(BlockState& state, const Layer& layer, Solved solved) {
    const Scheme& scheme = *plan_.scheme(state.plan->index, layer.id);
    const auto* quantized = std::get_if<Quantized>(&solved.weight);
    const at::Tensor weight = quantized ? quant::decode(*quantized) : std::get<Dense>(solved.weight).weight;
    const double error = (weight - state.weights.weight[layer.id].to(at::kFloat)).norm().item<double>();
    const double size = state.weights.weight[layer.id].to(at::kFloat).norm().item<double>();
    report_.notes.metric(layer.name, "relative_error", size > 0 ? error / size : 0.0);
    state.weights.weight[layer.id] = weight.to(model_.weights->dtype());
    state.changed_layers.erase(layer.id);
    if (scheme.input) state.weights.activation[layer.id] = ActivationQuantization{*scheme.input, solved.input_scale, solved.input_zero};
    if (solved.bias.defined() && !layer.bias.empty()) {
      state.weights.bias[layer.id] = solved.bias.to(state.weights.bias[layer.id].scalar_type());
      state.changed_tensors.insert(layer.bias);
    }
    if (!layer.bias.empty()) solved.bias = state.weights.bias[layer.id].to(at::kFloat);  // formats that fold it into integers need it
    const int64_t bytes = layer.out * layer.in;
    return output_.submit(bytes, [this, &layer, &scheme, solved = std::move(solved)]() -> Status {
      SLIM_ASSIGN(const TensorMap tensors, guarded(layer.name, [&] {
                    return recipe_.format->encode(layer, scheme, solved, model_.weights->dtype());
                  }));
      for (const auto& [name, tensor] : tensors) SLIM_TRY(writer_->put(name, tensor));
      return {};
    });
  }

  Status put_later(const std::string& name, const at::Tensor& tensor) {
    written_.insert(name);
    return output_.submit(static_cast<int64_t>(tensor.nbytes()), [this, name, tensor] { return writer_->put(name, tensor); });
  }

  /// Tensors that stay in float but were changed by a fold, and float layers cut out of a tensor that is replaced.
  Status write_changed(BlockState& state) {
    const BlockPlan& block = *state.plan;
    std::map<std::string, at::Tensor> assembled;  // float tensors that several layers are slices of
    for (const Layer& layer : block.layers) {
      const LayerDecision& decision = plan_.layers[block.index][layer.id];
      at::Tensor& weight = state.weights.weight[layer.id];
      if (state.changed_tensors.contains(layer.bias)) SLIM_TRY(put_later(layer.bias, state.weights.bias[layer.id]));
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
      if (changed) weight = weight.to(model_.weights->dtype());
    }
    for (const auto& [name, tensor] : assembled) SLIM_TRY(put_later(name, tensor));
    for (const std::string& name : block.params) {
      if (state.changed_tensors.contains(name)) SLIM_TRY(put_later(name, state.weights.params.at(name)));
    }
    return {};
  }

  Status copy_later(const std::string& name) {
    if (plan_.replaced.contains(name) || !written_.insert(name).second) return {};
    return output_.submit(0, [this, name] { return writer_->copy(name, model_.weights->checkpoint(), name); });
  }

  Status copy_unchanged(const BlockState& state) {
    for (const std::string& name : state.plan->params) SLIM_TRY(copy_later(name));
    for (const Layer& layer : state.plan->layers) {
      if (!layer.tied) SLIM_TRY(copy_later(layer.weight.tensor));
      if (!layer.bias.empty()) SLIM_TRY(copy_later(layer.bias));
    }
    return {};
  }

  /// Names the tensor that an error about NaN comes from.
  static Status blame_weights(const BlockState& state, const Status& status) {
    if (status.code() != Code::kNumeric) return status;
    const auto damaged = [](const at::Tensor& tensor) { return tensor.defined() && !at::isfinite(tensor).all().item<bool>(); };
    std::string name;
    for (const auto& [param, tensor] : state.weights.params) {
      if (damaged(tensor)) name = param;
    }
    for (const Layer& layer : state.plan->layers) {
      if (damaged(state.weights.bias[layer.id])) name = layer.bias;
      if (damaged(state.weights.weight[layer.id])) name = layer.weight.tensor;
    }
    if (name.empty()) return {status.code(), status.message() + "; its weights are finite: compute with --dtype float32"};
    return {status.code(), status.message() + ", as tensor " + name + " does; download the checkpoint again"};
  }

  Status forward(const BlockState& state, Carry& carry) {
    exec_->set_block(state.plan, &state.weights);
    SLIM_TRY(blame_weights(state, model_.forward(*state.plan, *exec_, carry)));
    return progress_.cancelled() ? Status(Code::kCancelled, "interrupted in " + state.plan->name + "; nothing was written") : Status{};
  }

  Status advance(const BlockState& state) {
    for (Carry& carry : calibration_.batches) SLIM_TRY(forward(state, carry));
    return {};
  }

  // ---- after the last block ----
  Result<Report> finish() {
    for (const std::string& name : model_.plan.globals) SLIM_TRY(copy_later(name));
    SLIM_TRY(output_.drain());
    OutputModel output = describe_output();
    const Checkpoint& input = model_.weights->checkpoint();
    SLIM_ASSIGN(const std::string config_json, output_config(input.config_json(), *recipe_.format, output));
    SLIM_ASSIGN(const auto side_files, recipe_.format->side_files(output));
    SLIM_TRY(writer_->write_file("config.json", config_json));
    for (const std::string& name : input.side_files()) {
      if (name != "config.json" && !side_files.contains(name)) SLIM_TRY(writer_->copy_file(name, input.folder() + "/" + name));
    }
    for (const auto& [name, text] : side_files) SLIM_TRY(writer_->write_file(name, text));
    const int64_t bytes = writer_->total_bytes();
    SLIM_TRY(writer_->finish());
    return report_.finish(config_, recipe_, plan_, calibration_, input.total_bytes(), bytes);
  }

  OutputModel describe_output() const {
    OutputModel output;
    output.plan = &model_.plan;
    output.ignore = plan_.ignore;
    output.dtype = model_.weights->dtype();
    for (const TensorSpec& spec : plan_.outputs) output.tensors[spec.name] = spec;
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const Layer& layer : block.layers) {
        if (const Scheme* scheme = plan_.scheme(block.index, layer.id)) output.schemes[layer.name] = *scheme;
      }
    }
    return output;
  }

  const RunConfig& config_;
  PluginRegistry& registry_;
  Progress& progress_;
  RunReport report_;
  Owned<Backend> backend_;
  Recipe recipe_;
  Model model_;
  RunPlan plan_;
  at::ScalarType scale_dtype_ = at::kFloat;
  int32_t last_observed_ = -1;
  std::unique_ptr<BlockExec> exec_;
  Calibration calibration_;
  std::set<std::string> written_;
  std::unique_ptr<CheckpointWriter> writer_;
  AsyncWriter output_;  ///< last member: its thread ends before anything that its jobs use
};

}  // namespace

Result<Report> quantize(const RunConfig& config, PluginRegistry& registry, Progress& progress) {
  return QuantizeRun(config, registry, progress).run();
}

}  // namespace slim
