#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "plugin/guard.h"
#include "run/async_writer.h"
#include "run/block_loader.h"
#include "run/commands.h"
#include "run/device_memory.h"
#include "run/device_plan.h"
#include "run/fingerprint.h"
#include "run/join_reports.h"
#include "run/journal.h"
#include "run/kept_statistics.h"
#include "run/open_backend.h"
#include "run/output_run.h"
#include "run/propagation.h"
#include "run/run_report.h"
#include "run/work_plan.h"
#include "slim/ops.hpp"

namespace slim {
namespace {

/// Tokens of the layer's distribution that stand behind every expert's own: enough for a usable Gram, too few to outweigh
/// what the expert saw.
constexpr double kExpertPriorTokens = 128;

/// What is told here, every output of the run reports.
class NotesOfAll final : public Notes {
 public:
  explicit NotesOfAll(const std::vector<std::unique_ptr<OutputRun>>& outputs) : outputs_(outputs) {}
  void note(std::string_view kind, std::string_view where, std::string_view detail) override {
    for (const auto& output : outputs_) output->notes().note(kind, where, detail);
  }
  void metric(std::string_view where, std::string_view key, double value) override {
    for (const auto& output : outputs_) output->notes().metric(where, key, value);
  }

 private:
  const std::vector<std::unique_ptr<OutputRun>>& outputs_;
};

/// The time since its construction, and what it went to.
class BlockClock {
 public:
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  PhaseSeconds phases() const {
    PhaseSeconds now = phase_seconds();
    for (size_t i = 0; i < kPhases; ++i) now[i] -= before_[i];
    return now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
  PhaseSeconds before_ = phase_seconds();
};

/// One run: opens and decides everything, then goes block by block, and makes every output of each.
class QuantizeRun {
 public:
  QuantizeRun(const RunConfig& config, PluginRegistry& registry, Progress& progress)
      : config_(config), asked_batch_size_(config.batch_size), registry_(registry), progress_(progress) {
    device_mode_.batch_size = config.batch_size;
  }

  Result<Report> run() {
    const c10::NoGradGuard no_grad;
    auto report = run_all();
    if (report.ok() || !started_) return report;
    jobs_.cancel();
    return explain(report.status());
  }

 private:
  Result<Report> run_all() {
    SLIM_TRY(open());
    const std::string partial = CheckpointWriter::partial_of(outputs_.front()->folder());
    if (config_.resume && completed_before()) return completed_report();
    const int64_t left = Journal::blocks_in(partial);
    if (config_.resume && left > 0) {
      SLIM_TRY(resume(partial));
    } else {
      SLIM_TRY(check_left(partial, left));
      SLIM_TRY(begin(partial));
    }
    started_ = true;
    SLIM_TRY(run_blocks());
    if (stopped()) return stopped_report();
    return finish();
  }

  // ---- interrupted runs ----
  Status check_left(const std::string& partial, int64_t left) {
    if (config_.resume) notes_.note("nothing to resume", partial, "the run began anew");
    if (left == 0 || config_.overwrite || !CheckpointWriter::check_unused(partial).ok()) return {};
    return {Code::kInvalidArgument, partial + ": holds " + std::to_string(left) +
                                        " finished blocks of an interrupted run; go on with --resume, or "
                                        "give --overwrite to begin anew"};
  }

  Status begin(const std::string& partial) {
    for (auto& output : outputs_) SLIM_TRY(output->create(false));  // first: reading samples may take long
    SLIM_TRY(open_statistics());
    if (runs_forward()) SLIM_TRY(begin_propagation());
    SLIM_TRY(create_statistics());
    SLIM_ASSIGN(const Fingerprint fingerprint, fingerprint_of_run());
    SLIM_ASSIGN(journal_, Journal::begin(partial, fingerprint));
    return {};
  }

  Status resume(const std::string& partial) {
    SLIM_ASSIGN(journal_, Journal::open(partial));
    SLIM_ASSIGN(const Fingerprint expected, fingerprint_of_run());
    const std::string differs = difference(journal_->fingerprint(), expected);
    if (!differs.empty()) {
      return {Code::kInvalidArgument, partial + ": the interrupted run was another: " + differs +
                                          "; undo that, or begin anew with --overwrite and without --resume"};
    }
    SLIM_ASSIGN(RunState state, journal_->state());
    SLIM_TRY(open_statistics());
    for (size_t i = 0; i < outputs_.size(); ++i) {
      SLIM_TRY(outputs_[i]->restore_report(state.reports.at(i)));
      if (done_before(i)) continue;
      SLIM_TRY(outputs_[i]->create(true));
      SLIM_TRY(outputs_[i]->adopt(journal_->tensors(i)));
    }
    SLIM_TRY(propagation_->resume(std::move(state.calibration)));
    if (!state.statistics.empty() && !statistics_done()) SLIM_TRY(statistics_->resume(state.statistics));
    notes_.note("resumed", partial, "after " + std::to_string(journal_->blocks()) + " blocks");
    return {};
  }

  Result<Fingerprint> fingerprint_of_run() {
    std::vector<const OutputPlan*> plans;
    for (const auto& output : outputs_) plans.push_back(&output->plan());
    RunConfig asked = config_;
    asked.batch_size =
        asked_batch_size_;  // how much room the device has may change; batches are the record's
    return run_fingerprint(asked, backend_.id, plans, model_, registry_);
  }

  /// A crash may come between the last rename and the end of the record.
  bool completed_before() const {
    std::error_code error;
    return std::filesystem::exists(Journal::folder_in(outputs_.front()->folder()), error);
  }
  Result<Report> completed_report() {
    SLIM_TRY(remove_record());
    const std::string& folder = outputs_.front()->folder();
    return Report{folder + ": was complete already\n",
                  nlohmann::json{{"output", folder}, {"complete", true}}.dump()};
  }
  Status remove_record() {
    std::error_code error;
    const std::string folder = Journal::folder_in(outputs_.front()->folder());
    std::filesystem::remove_all(folder, error);
    return error ? Status(Code::kIo, folder + ": cannot delete it: " + error.message()) : Status{};
  }
  static std::string step_of(size_t output) { return "output " + std::to_string(output + 1); }
  bool done_before(size_t output) const {
    std::error_code error;
    return journal_->announced(step_of(output)) &&
           !std::filesystem::exists(CheckpointWriter::partial_of(outputs_[output]->folder()), error);
  }
  bool statistics_done() const {
    std::error_code error;
    return journal_->announced(kStatisticsStep) &&
           !std::filesystem::exists(config_.save_statistics + ".partial", error);
  }

  /// The block is finished. Where the next one needs nothing of it, and nobody waits for a block, the run goes on while its tensors are
  /// on their way, and the record is made behind them.
  Status finish_block() {
    const bool waits = runs_forward() || statistics_->kept() || config_.stop_after_blocks > 0;
    if (waits) SLIM_TRY(jobs_.drain());  // a slow disk must not let finished blocks pile up
    SLIM_ASSIGN(RunState state, state_now());
    if (waits) return record(state);
    return jobs_.submit(0, [this, state = std::move(state)] { return record(state); });
  }

  /// All that the next block needs.
  Result<RunState> state_now() {
    RunState state;
    for (auto& output : outputs_) state.reports.push_back(output->report_state());
    SLIM_ASSIGN(state.statistics, statistics_->state());
    if (runs_forward() && journal_->blocks() >= last_forward_) propagation_->forget();
    state.calibration = propagation_->calibration();
    return state;
  }

  /// What was handed to the writer is on the disk, and the record says so.
  Status record(const RunState& state) {
    std::vector<std::map<std::string, uint64_t>> tensors;
    for (auto& output : outputs_) {
      SLIM_ASSIGN(tensors.emplace_back(), output->writer().sync_finished());
    }
    SLIM_TRY(journal_->record(tensors, state));
    for (const Carry& carry : state.calibration.batches) Spill::release(carry);
    keep_partial(true);
    return {};
  }

  void keep_partial(bool keep) {
    for (auto& output : outputs_) output->writer().keep_partial(keep);
    statistics_->keep_partial(keep);
  }

  /// Adds to an error what is left of the run: everything finished, unless the input or the plugins are at fault.
  Status explain(const Status& status) {
    const Code code = status.code();
    const bool outside = code == Code::kCancelled || code == Code::kIo || code == Code::kNotFound ||
                         code == Code::kCorrupt || code == Code::kOutOfMemory;
    if (!outside || !journal_ || journal_->blocks() == 0) {
      for (auto& output : outputs_) output->discard();
      statistics_->keep_partial(false);
      return code == Code::kCancelled ? Status(code, status.message() + "; nothing was written") : status;
    }
    return {code, status.message() + "; " + std::to_string(journal_->blocks()) + " of " +
                      std::to_string(model_.plan.blocks.size()) + " blocks are kept in " +
                      CheckpointWriter::partial_of(outputs_.front()->folder()) + ": go on with --resume"};
  }

  bool stopped() const {
    const auto blocks = static_cast<int64_t>(model_.plan.blocks.size());
    return config_.stop_after_blocks > 0 && journal_->blocks() >= config_.stop_after_blocks &&
           journal_->blocks() < blocks;
  }
  Report stopped_report() const {
    const std::string partial = CheckpointWriter::partial_of(outputs_.front()->folder());
    return {"stopped after       " + std::to_string(journal_->blocks()) + " of " +
                std::to_string(model_.plan.blocks.size()) + " blocks, kept in " + partial +
                ": go on with --resume\npeak RAM            " + bytes_text(peak_resident_bytes()) + "\n",
            nlohmann::json{{"output", outputs_.front()->folder()},
                           {"partial", partial},
                           {"blocks", journal_->blocks()},
                           {"peak_rss_bytes", peak_resident_bytes()}}
                .dump()};
  }

  // ---- before any work ----
  Status open() {
    if (config_.output.empty()) return {Code::kInvalidArgument, "no output folder; pass --output"};
    if (config_.threads > 0) at::set_num_threads(config_.threads);
    SLIM_ASSIGN(std::vector<OutputPlan> plans, make_recipes(config_, registry_));
    SLIM_TRY(decide_propagation(plans.size()));
    SLIM_ASSIGN(backend_, open_backend(config_.backend, registry_));
    ops::force_reference(config_.kernels == "reference");
    SLIM_ASSIGN(model_, Model::open(config_.model, config_.adapter, registry_));
    SLIM_TRY(make_run_plans(plans, model_));
    if (!backend_.device.is_cpu()) {
      SLIM_ASSIGN(device_mode_,
                  choose_device_mode(config_, model_, plans, free_device_memory(backend_.device)));
      reset_peak_device_memory(backend_.device);
    }
    const bool smaller_batches =
        std::exchange(config_.batch_size, device_mode_.batch_size) != device_mode_.batch_size;
    SLIM_ASSIGN(memory_, choose_memory_mode(config_, model_, plans));
    SLIM_ASSIGN(const at::ScalarType dtype, model_.compute_dtype(config_.dtype));
    work_ = count_work(config_, model_, plans);
    for (OutputPlan& plan : plans) {
      plan.config.backend = backend_.id;
      outputs_.push_back(std::make_unique<OutputRun>(std::move(plan), model_, jobs_, progress_));
    }
    statistics_ = std::make_unique<KeptStatistics>(config_, model_, dtype);
    loader_ =
        std::make_unique<BlockLoader>(*model_.weights, backend_.device, device_mode_.read_ahead, notes_);
    propagation_ = std::make_unique<Propagation>(
        Propagation::Options{dtype, backend_.device, device_mode_.read_ahead, config_.all_experts}, model_,
        Spill(CheckpointWriter::partial_of(outputs_.front()->folder()), memory_.spill), notes_, progress_);
    find_last_forward();
    note_measures(smaller_batches);
    return {};
  }

  /// What is done to need less memory.
  void note_measures(bool smaller_batches) {
    if (memory_.spill && runs_forward())
      notes_.note("activations in files", "run.max_memory", bytes_text(config_.max_memory));
    if (smaller_batches && runs_forward()) {
      notes_.note("smaller batches for the device's memory", "run.max_vram",
                  std::to_string(config_.batch_size) + " samples each");
    }
    if (!memory_.read_ahead)
      notes_.note("weights not read ahead", "run.max_memory", bytes_text(config_.max_memory));
  }

  /// One forward pass serves several outputs, or a later run, only if it is the float model's.
  Status decide_propagation(size_t outputs) {
    const bool kept = !config_.save_statistics.empty() || !config_.statistics.empty();
    if (config_.propagate == "quantized" && (kept || outputs > 1)) {
      return {Code::kInvalidArgument, std::string("run.propagate = quantized: with ") +
                                          (kept ? "kept statistics" : "several outputs") +
                                          " later blocks can only see the float model; use auto or float"};
    }
    float_inputs_ = config_.propagate == "float" || (config_.propagate == "auto" && (kept || outputs > 1));
    return {};
  }

  std::unique_ptr<StatisticSet> observations(const BlockPlan& block) const {
    auto statistics =
        std::make_unique<StatisticSet>(block, propagation_->calibration().tokens(), config_.normalize_tokens);
    for (const auto& output : outputs_) {
      if (output->changes(block)) observe(output->plan(), block, *statistics);
    }
    return statistics;
  }

  void find_last_forward() {
    if (!config_.statistics.empty()) return;  // nothing is collected
    for (const BlockPlan& block : model_.plan.blocks) {
      if (!observations(block)->empty()) last_forward_ = block.index;
    }
  }
  bool runs_forward() const { return last_forward_ >= 0; }
  bool changes(const BlockPlan& block) const {
    return std::any_of(outputs_.begin(), outputs_.end(),
                       [&](const auto& output) { return output->changes(block); });
  }

  Status begin_propagation() {
    if (config_.calib.empty()) {
      const Recipe& recipe = outputs_.front()->plan().recipe;
      const bool cache = outputs_.front()->plan().plan.kv_cache;
      return {Code::kInvalidArgument, (cache ? "kv_cache = " + outputs_.front()->plan().config.kv_cache
                                             : recipe.algorithm_ids.front()) +
                                          " needs calibration data; pass --calib FILE or DIR"};
    }
    return propagation_->begin(config_);
  }

  // ---- kept statistics ----
  Status open_statistics() {
    SLIM_TRY(statistics_->open());
    if (!statistics_->given()) return {};
    propagation_->count_tokens(statistics_->text_tokens(), statistics_->image_tokens());
    notes_.note("statistics from a file", config_.statistics,
                std::to_string(propagation_->calibration().tokens()) + " tokens of " + statistics_->source());
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
    return statistics_->create(count);
  }

  Status finish_statistics() {
    if (!statistics_->kept()) return {};
    SLIM_TRY(journal_->announce(kStatisticsStep));
    return statistics_->finish(propagation_->calibration());
  }

  // ---- blocks ----
  Status run_blocks() {
    const auto& blocks = model_.plan.blocks;
    progress_.begin("quantizing", static_cast<int64_t>(blocks.size()));
    progress_.expect(planned_seconds());
    const auto first = static_cast<size_t>(journal_->blocks());
    for (size_t i = 0; i < first; ++i) progress_.step(blocks[i].name);
    read_ahead(first);
    for (size_t i = first; i < blocks.size() && !stopped(); ++i) {
      const BlockPlan& block = blocks[i];
      if (progress_.cancelled()) return {Code::kCancelled, "interrupted before " + block.name};
      progress_.working_on(block.name);
      const BlockClock clock;
      BlockState state;
      state.plan = &block;
      state.runs_again = block.index < last_forward_ && !float_inputs_;
      if (needs_weights(block)) {
        SLIM_ASSIGN(state.weights, loader_->take(block));
      }
      if (memory_.read_ahead) read_ahead(i + 1);
      SLIM_TRY(run_block(state));
      state = {};
      for (auto& output : outputs_) output->record_block(block, clock.seconds(), clock.phases());
      SLIM_TRY(finish_block());
      malloc_trim(0);  // what the allocator keeps in fragments would grow with the number of blocks
      progress_.step(block.name);
    }
    return jobs_.drain();
  }

  /// What each block is expected to take, on a machine of usual proportions: only shares matter.
  std::vector<double> planned_seconds() const {
    std::vector<double> seconds;
    for (const PlannedWork& work : work_) seconds.push_back(sum(estimate_seconds(work, {})));
    return seconds;
  }

  /// All other blocks are copied as bytes.
  bool needs_weights(const BlockPlan& block) const { return changes(block) || block.index <= last_forward_; }
  void read_ahead(size_t index) {
    const auto& blocks = model_.plan.blocks;
    if (index < blocks.size() && needs_weights(blocks[index])) loader_->begin(blocks[index]);
  }

  Status run_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    if (block.index <= last_forward_ && starts_stage(model_.plan, block))
      SLIM_TRY(propagation_->enter(block));
    if (changes(block)) {
      SLIM_TRY(make_block(state));
    } else {
      if (block.index < last_forward_) SLIM_TRY(propagation_->advance(state));
      for (auto& output : outputs_) SLIM_TRY(output->copy_block(block));
    }
    propagation_->release_globals();
    return {};
  }

  Status make_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    BlockWork work;
    const Status status = make_outputs(state, work, propagation_->exec());
    SLIM_TRY(status.code() == Code::kOutOfMemory && can_begin_again(work) ? make_on_host(state, work, status)
                                                                          : status);
    if (block.index >= last_forward_) return {};
    if (!float_inputs_) return propagation_->advance(state);
    propagation_->replace(std::move(work.float_outputs));
    return {};
  }

  /// How far a block has come.
  struct BlockWork {
    std::vector<Carry> float_outputs;
    std::vector<RunReport> told;   ///< by the outputs, before each was made
    bool statistics_kept = false;  ///< in the file of run.save_statistics
    size_t outputs_made = 0;
  };

  /// Only a device has another place to go to, and what is handed to the writer is not taken back.
  bool can_begin_again(const BlockWork& work) const {
    return !backend_.device.is_cpu() && work.outputs_made < outputs_.size() &&
           !outputs_[work.outputs_made]->has_begun_writing();
  }

  /// The block again from its weights, on the host, for the outputs that are left.
  Status make_on_host(BlockState& state, BlockWork& work, const Status& why) {
    propagation_->reset();
    const BlockPlan& block = *state.plan;
    const bool runs_again = state.runs_again;
    state = {};
    release_device_memory(backend_.device);
    state.plan = &block;
    state.runs_again = runs_again;
    SLIM_ASSIGN(state.weights, model_.weights->load(block));
    if (work.outputs_made < work.told.size())
      outputs_[work.outputs_made]->tell_again(work.told[work.outputs_made]);
    for (size_t i = work.outputs_made; i < outputs_.size(); ++i) {
      outputs_[i]->notes().note("computed on the CPU: out of the device's memory", block.name, why.message());
    }
    work.told.resize(work.outputs_made);
    work.float_outputs.clear();
    SLIM_TRY(make_outputs(state, work, propagation_->host_exec()));
    state.weights = loader_->on_device(block, std::move(state.weights));
    return {};
  }

  Status make_outputs(BlockState& state, BlockWork& work, BlockExec& exec) {
    const auto statistics = observations(*state.plan);
    SLIM_TRY(gather(state, *statistics, work, exec));
    for (size_t& i = work.outputs_made; i < outputs_.size(); ++i) {
      work.told.push_back(outputs_[i]->told());
      if (i + 1 == outputs_.size()) {
        SLIM_TRY(make_output(*outputs_[i], state, *statistics, exec));
        continue;
      }
      BlockState own = state;  // tensors are replaced, never written to: they may be shared
      const auto own_statistics = statistics->clone();
      SLIM_TRY(make_output(*outputs_[i], own, *own_statistics, exec));
    }
    exec.region_inputs().clear();
    return {};
  }

  Status make_output(OutputRun& output, BlockState& state, StatisticSet& statistics, BlockExec& exec) {
    if (!output.changes(*state.plan)) return output.copy_block(*state.plan);
    Status status = output.make_block(state, statistics, exec, propagation_->calibration());
    return outputs_.size() == 1 ? status : std::move(status).in("output " + output.plan().config.output);
  }

  /// The statistics of a block: from the file of an earlier run, or from a calibration pass, which with float inputs gives the next
  /// block's too.
  Status gather(const BlockState& state, StatisticSet& statistics, BlockWork& work, BlockExec& exec) {
    const bool wants_outputs = float_inputs_ && state.plan->index < last_forward_;
    return guarded(state.plan->name, [&]() -> Status {
      SLIM_TRY(statistics_->given() ? statistics_->restore(*state.plan, statistics, exec.device())
                                    : propagation_->collect(state, statistics, exec,
                                                            wants_outputs ? &work.float_outputs : nullptr));
      if (!std::exchange(work.statistics_kept, true)) SLIM_TRY(statistics_->put(*state.plan, statistics));
      if (!statistics.empty()) statistics.finish(kExpertPriorTokens);
      return {};
    });
  }

  // ---- after the last block ----
  /// What was read at different times must have been one model.
  Status check_input_unchanged() const {
    const auto begun = journal_->fingerprint().find(kWeightFiles);
    if (begun != journal_->fingerprint().end() && begun->second == weight_files_stamp(model_)) return {};
    return {Code::kCorrupt, config_.model +
                                ": its weight files were changed or removed during the run, so that the "
                                "output may mix two models; "
                                "begin anew, or put the old files back as they were"};
  }

  Result<Report> finish() {
    SLIM_TRY(check_input_unchanged());
    if (float_inputs_ && config_.propagate == "auto" && runs_forward()) {
      notes_.note("later blocks saw the float model", "run.propagate",
                  outputs_.size() > 1 ? "several outputs share one calibration" : "statistics were kept");
    }
    for (size_t i = outputs_.size(); i-- > 1;) {  // the first holds the record: it comes last
      if (done_before(i)) continue;
      SLIM_TRY(journal_->announce(step_of(i)));
      SLIM_TRY(outputs_[i]->finish());
    }
    SLIM_TRY(finish_statistics());
    SLIM_TRY(journal_->announce(step_of(0)));
    SLIM_TRY(outputs_.front()->finish());
    SLIM_TRY(remove_record());
    const std::string products =
        runs_forward() ? ops::product_text(propagation_->exec().dtype(), backend_.device) : "";
    std::vector<Report> reports;
    for (const auto& output : outputs_)
      reports.push_back(output->report(propagation_->calibration(), products, backend_.device));
    return join_reports(reports);
  }

  static constexpr const char* kStatisticsStep = "statistics";

  RunConfig config_;  ///< with the batches that the device has room for
  int64_t asked_batch_size_;
  PluginRegistry& registry_;
  Progress& progress_;
  OpenBackend backend_;
  Model model_;
  MemoryMode memory_;
  std::vector<PlannedWork> work_;  ///< by block
  bool float_inputs_ = false;
  int32_t last_forward_ = -1;  ///< the block up to which statistics are wanted, and the model runs
  DeviceMode device_mode_;
  std::unique_ptr<BlockLoader> loader_;
  std::unique_ptr<Propagation> propagation_;
  std::unique_ptr<KeptStatistics> statistics_;
  std::unique_ptr<Journal> journal_;
  bool started_ = false;  ///< errors from here on come with what is kept
  std::vector<std::unique_ptr<OutputRun>> outputs_;
  NotesOfAll notes_{outputs_};
  AsyncWriter jobs_;  ///< last member: its thread ends before anything that its jobs use
};

}  // namespace

Result<Report> quantize(const RunConfig& config, PluginRegistry& registry, Progress& progress) {
  return QuantizeRun(config, registry, progress).run();
}

}  // namespace slim
