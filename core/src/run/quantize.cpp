#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <malloc.h>

#include <algorithm>
#include <filesystem>
#include <future>

#include "plugin/guard.h"
#include "run/async_writer.h"
#include "run/block_context.h"
#include "run/calibration.h"
#include "run/commands.h"
#include "run/fingerprint.h"
#include "run/join_reports.h"
#include "run/output_run.h"
#include "run/run_report.h"
#include "run/statistics_file.h"

namespace slim {
namespace {

/// Tokens of the layer's distribution that stand behind every expert's own: enough for a usable Gram, too few to outweigh
/// what the expert saw.
constexpr double kExpertPriorTokens = 128;

/// One run: opens and decides everything, then goes block by block, and makes every output of each.
class QuantizeRun {
 public:
  QuantizeRun(const RunConfig& config, PluginRegistry& registry, Progress& progress)
      : config_(config), registry_(registry), progress_(progress) {}

  Result<Report> run() {
    const c10::NoGradGuard no_grad;
    SLIM_TRY(open());
    for (auto& output : outputs_) SLIM_TRY(output->create());  // first: reading samples may take long
    SLIM_TRY(open_statistics());
    if (runs_forward()) SLIM_TRY(read_samples());
    SLIM_TRY(create_statistics());
    SLIM_TRY(run_blocks());
    return finish();
  }

 private:
  // ---- before any work ----
  Status open() {
    if (config_.output.empty()) return {Code::kInvalidArgument, "no output folder; pass --output"};
    if (config_.threads > 0) at::set_num_threads(config_.threads);
    SLIM_ASSIGN(std::vector<OutputPlan> plans, make_recipes(config_, registry_));
    SLIM_TRY(decide_propagation(plans.size()));
    SLIM_ASSIGN(backend_, registry_.backend(config_.backend));
    SLIM_TRY(guarded(config_.backend, [&] { return backend_->open({}); }));
    SLIM_ASSIGN(model_, Model::open(config_.model, config_.adapter, registry_));
    SLIM_TRY(make_run_plans(plans, model_));
    SLIM_TRY(check_memory(plans));
    SLIM_ASSIGN(const at::ScalarType dtype, model_.compute_dtype(config_.dtype));
    exec_ = std::make_unique<BlockExec>(*model_.weights, dtype);
    exec_->set_all_experts(config_.all_experts);
    for (OutputPlan& plan : plans) outputs_.push_back(std::make_unique<OutputRun>(std::move(plan), model_, jobs_));
    find_last_observed();
    return {};
  }

  /// One forward pass serves several outputs, or a later run, only if it is the float model's.
  Status decide_propagation(size_t outputs) {
    const bool kept = !config_.save_statistics.empty() || !config_.statistics.empty();
    if (config_.propagate == "quantized" && (kept || outputs > 1)) {
      return {Code::kInvalidArgument, std::string("run.propagate = quantized: with ") + (kept ? "kept statistics" : "several outputs") +
                                          " later blocks can only see the float model; use auto or float"};
    }
    float_inputs_ = config_.propagate == "float" || (config_.propagate == "auto" && (kept || outputs > 1));
    return {};
  }

  Status check_memory(const std::vector<OutputPlan>& plans) const {
    const int64_t needed = peak_bytes(config_, model_, plans);
    if (config_.max_memory == 0 || needed <= config_.max_memory) return {};
    return {Code::kOutOfMemory, "the run takes about " + bytes_text(needed) + " of memory, run.max_memory allows " +
                                    bytes_text(config_.max_memory) +
                                    "; use fewer, shorter or smaller batches of samples (--num-samples, --max-seq-length, --batch-size), or allow more"};
  }

  std::unique_ptr<StatisticSet> observations(const BlockPlan& block) const {
    auto statistics = std::make_unique<StatisticSet>(block, calibration_.tokens());
    for (const auto& output : outputs_) {
      if (output->changes(block)) observe(output->plan(), block, *statistics);
    }
    return statistics;
  }

  void find_last_observed() {
    for (const BlockPlan& block : model_.plan.blocks) {
      if (!observations(block)->empty()) last_observed_ = block.index;
    }
    last_forward_ = config_.statistics.empty() ? last_observed_ : -1;
  }
  bool runs_forward() const { return last_forward_ >= 0; }
  bool changes(const BlockPlan& block) const {
    return std::any_of(outputs_.begin(), outputs_.end(), [&](const auto& output) { return output->changes(block); });
  }

  Status read_samples() {
    if (config_.calib.empty()) {
      const Recipe& recipe = outputs_.front()->plan().recipe;
      const bool cache = outputs_.front()->plan().plan.kv_cache;
      return {Code::kInvalidArgument, (cache ? "kv_cache = " + outputs_.front()->plan().config.kv_cache : recipe.algorithm_ids.front()) +
                                          " needs calibration data; pass --calib FILE or DIR"};
    }
    SLIM_ASSIGN(calibration_, calibrate_input(config_, model_, *exec_, progress_));
    return {};
  }

  // ---- kept statistics ----
  /// What statistics depend on. Calibration is compared only where this run names some.
  Result<Fingerprint> statistics_fingerprint() const {
    SLIM_ASSIGN(Fingerprint fingerprint, model_fingerprint(model_));
    fingerprint["run.dtype"] = c10::toString(exec_->dtype());
    fingerprint["run.all_experts"] = config_.all_experts ? "true" : "false";
    if (config_.calib.empty()) return fingerprint;
    fingerprint["dataset.path"] = std::filesystem::path(config_.calib).lexically_normal().filename().string();
    fingerprint["dataset.num_samples"] = std::to_string(config_.num_samples);
    fingerprint["dataset.max_seq_length"] = std::to_string(config_.max_seq_length);
    fingerprint["dataset.shuffle"] = config_.shuffle ? "seed " + std::to_string(config_.seed) : "false";
    return fingerprint;
  }

  Status open_statistics() {
    if (config_.statistics.empty()) return {};
    if (!config_.save_statistics.empty()) {
      return {Code::kInvalidArgument, "--statistics and --save-statistics exclude each other: nothing new is collected"};
    }
    SLIM_ASSIGN(statistics_file_, StatisticsFile::open(config_.statistics));
    SLIM_ASSIGN(const Fingerprint expected, statistics_fingerprint());
    const Fingerprint& found = statistics_file_->fingerprint();
    if (const std::string differs = difference(found, expected); !differs.empty()) {
      return {Code::kInvalidArgument, config_.statistics + ": its statistics are not this run's: " + differs};
    }
    const auto saved = [&](const char* key) { return found.contains(key) ? std::atoll(found.at(key).c_str()) : 0; };
    calibration_.text_tokens = saved(kTextTokens);
    calibration_.image_tokens = saved(kImageTokens);
    note_all("statistics from a file", config_.statistics, std::to_string(calibration_.tokens()) + " tokens of " +
                                                               (found.contains("dataset.path") ? found.at("dataset.path") : "unknown data"));
    return {};
  }

  Status create_statistics() {
    if (config_.save_statistics.empty()) return {};
    if (!runs_forward()) return {Code::kInvalidArgument, "--save-statistics: the algorithm collects none"};
    int64_t count = 0;
    for (const BlockPlan& block : model_.plan.blocks) {
      SLIM_TRY(observations(block)->for_each([&](const Port&, const std::string&, Statistic&) {
        ++count;
        return Status{};
      }));
    }
    SLIM_ASSIGN(statistics_writer_, StatisticsWriter::create(config_.save_statistics, count));
    return {};
  }

  Status finish_statistics() {
    if (!statistics_writer_) return {};
    SLIM_ASSIGN(Fingerprint fingerprint, statistics_fingerprint());
    fingerprint[kTextTokens] = std::to_string(calibration_.text_tokens);
    fingerprint[kImageTokens] = std::to_string(calibration_.image_tokens);
    return statistics_writer_->finish(fingerprint);
  }

  // ---- blocks ----
  Status run_blocks() {
    const auto& blocks = model_.plan.blocks;
    progress_.begin("quantizing", static_cast<int64_t>(blocks.size()));
    std::future<Result<BlockWeights>> next = load_ahead(0);
    for (const BlockPlan& block : blocks) {
      if (progress_.cancelled()) return {Code::kCancelled, "interrupted before " + block.name + "; nothing was written"};
      BlockState state;
      state.plan = &block;
      if (next.valid()) {
        SLIM_ASSIGN(state.weights, next.get());
      }
      next = load_ahead(block.index + 1);
      SLIM_TRY(run_block(state));
      SLIM_TRY(jobs_.drain());  // a slow disk must not let finished blocks pile up
      state = {};
      malloc_trim(0);  // what the allocator keeps in fragments would grow with the number of blocks
      progress_.step(block.name);
    }
    return {};
  }

  std::future<Result<BlockWeights>> load_ahead(size_t index) {
    const auto& blocks = model_.plan.blocks;
    if (index >= blocks.size()) return {};
    const BlockPlan& block = blocks[index];
    if (!changes(block) && block.index > last_forward_) return {};  // copied as bytes
    return std::async(std::launch::async, [this, &block] { return model_.weights->load(block); });
  }

  Status run_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    if (block.index <= last_forward_ && starts_stage(model_.plan, block)) {
      for (Carry& carry : calibration_.batches) SLIM_TRY(model_.enter(block, *exec_, carry));
    }
    if (changes(block)) {
      SLIM_TRY(make_block(state));
    } else {
      if (block.index < last_forward_) SLIM_TRY(advance(state, calibration_.batches));
      for (auto& output : outputs_) SLIM_TRY(output->copy_block(block));
    }
    exec_->release_globals();
    return {};
  }

  Status make_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    const auto statistics = observations(block);
    std::vector<Carry> float_outputs;
    SLIM_TRY(gather(state, *statistics, float_outputs));
    for (size_t i = 0; i + 1 < outputs_.size(); ++i) {
      BlockState own = state;  // tensors are replaced, never written to: they may be shared
      const auto own_statistics = statistics->clone();
      SLIM_TRY(make_output(*outputs_[i], own, *own_statistics));
    }
    SLIM_TRY(make_output(*outputs_.back(), state, *statistics));
    exec_->region_inputs().clear();
    if (block.index >= last_forward_) return {};
    if (!float_inputs_) return advance(state, calibration_.batches);
    calibration_.batches = std::move(float_outputs);
    return {};
  }

  Status make_output(OutputRun& output, BlockState& state, StatisticSet& statistics) {
    if (!output.changes(*state.plan)) return output.copy_block(*state.plan);
    Status status = output.make_block(state, statistics, *exec_, calibration_);
    return outputs_.size() == 1 ? status : std::move(status).in("output " + output.plan().config.output);
  }

  /// The statistics of a block: from the file of an earlier run, or from a calibration pass, which with float inputs gives the next
  /// block's too.
  Status gather(const BlockState& state, StatisticSet& statistics, std::vector<Carry>& float_outputs) {
    if (statistics_file_) {
      SLIM_TRY(statistics_file_->restore(*state.plan, statistics));
    } else {
      SLIM_TRY(collect(state, statistics, float_outputs));
    }
    if (statistics_writer_) SLIM_TRY(statistics_writer_->put(*state.plan, statistics));
    if (!statistics.empty()) statistics.finish(kExpertPriorTokens);
    return {};
  }

  Status collect(const BlockState& state, StatisticSet& statistics, std::vector<Carry>& float_outputs) {
    exec_->region_inputs().clear();
    const bool wants_output = float_inputs_ && state.plan->index < last_forward_;
    if (statistics.empty() && !wants_output) return {};
    exec_->set_statistics(&statistics);
    for (const Carry& carry : calibration_.batches) {
      Carry output = carry;
      SLIM_TRY(forward(state, output));
      if (wants_output) float_outputs.push_back(std::move(output));
    }
    exec_->set_statistics(nullptr);
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

  Status advance(const BlockState& state, std::vector<Carry>& batches) {
    for (Carry& carry : batches) SLIM_TRY(forward(state, carry));
    return {};
  }

  // ---- after the last block ----
  Result<Report> finish() {
    if (float_inputs_ && config_.propagate == "auto" && runs_forward()) {
      note_all("later blocks saw the float model", "run.propagate", outputs_.size() > 1 ? "several outputs share one calibration" : "statistics were kept");
    }
    for (auto& output : outputs_) SLIM_TRY(output->finish());
    SLIM_TRY(finish_statistics());
    std::vector<Report> reports;
    for (const auto& output : outputs_) reports.push_back(output->report(calibration_));
    return join_reports(reports);
  }

  void note_all(std::string_view kind, std::string_view where, std::string_view detail) {
    for (auto& output : outputs_) output->notes().note(kind, where, detail);
  }

  static constexpr const char* kTextTokens = "text tokens";
  static constexpr const char* kImageTokens = "image tokens";

  const RunConfig& config_;
  PluginRegistry& registry_;
  Progress& progress_;
  Owned<Backend> backend_;
  Model model_;
  bool float_inputs_ = false;
  int32_t last_observed_ = -1, last_forward_ = -1;  ///< blocks up to which statistics are wanted, and the model runs
  std::unique_ptr<BlockExec> exec_;
  Calibration calibration_;
  std::unique_ptr<StatisticsFile> statistics_file_;
  std::unique_ptr<StatisticsWriter> statistics_writer_;
  std::vector<std::unique_ptr<OutputRun>> outputs_;
  AsyncWriter jobs_;  ///< last member: its thread ends before anything that its jobs use
};

}  // namespace

Result<Report> quantize(const RunConfig& config, PluginRegistry& registry, Progress& progress) {
  return QuantizeRun(config, registry, progress).run();
}

}  // namespace slim
