#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <malloc.h>

#include <algorithm>
#include <filesystem>
#include <future>

#include <nlohmann/json.hpp>

#include "plugin/guard.h"
#include "run/async_writer.h"
#include "run/block_context.h"
#include "run/calibration.h"
#include "run/commands.h"
#include "run/device_copies.h"
#include "run/device_memory.h"
#include "run/device_moves.h"
#include "run/device_plan.h"
#include "run/fingerprint.h"
#include "run/join_reports.h"
#include "run/journal.h"
#include "run/open_backend.h"
#include "run/output_run.h"
#include "run/run_report.h"
#include "run/spill.h"
#include "run/statistics_file.h"
#include "slim/ops.hpp"

namespace slim {
namespace {

/// Tokens of the layer's distribution that stand behind every expert's own: enough for a usable Gram, too few to outweigh
/// what the expert saw.
constexpr double kExpertPriorTokens = 128;

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
    if (config_.resume) note_all("nothing to resume", partial, "the run began anew");
    if (left == 0 || config_.overwrite || CheckpointWriter::in_use(partial)) return {};
    return {Code::kInvalidArgument, partial + ": holds " + std::to_string(left) +
                                        " finished blocks of an interrupted run; go on with --resume, or "
                                        "give --overwrite to begin anew"};
  }

  Status begin(const std::string& partial) {
    for (auto& output : outputs_) SLIM_TRY(output->create(false));  // first: reading samples may take long
    SLIM_TRY(open_statistics());
    if (runs_forward()) SLIM_TRY(read_samples());
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
    calibration_ = std::move(state.calibration);
    for (Carry& carry : calibration_.batches) {
      SLIM_ASSIGN(carry, spill_->store(std::move(carry)));
    }
    if (!state.statistics.empty() && !statistics_done()) {
      SLIM_ASSIGN(statistics_writer_, StatisticsWriter::resume(config_.save_statistics, state.statistics));
    }
    note_all("resumed", partial, "after " + std::to_string(journal_->blocks()) + " blocks");
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
    const bool waits = runs_forward() || statistics_writer_ || config_.stop_after_blocks > 0;
    if (waits) SLIM_TRY(jobs_.drain());  // a slow disk must not let finished blocks pile up
    SLIM_ASSIGN(RunState state, state_now());
    if (waits) return record(state);
    return jobs_.submit(0, [this, state = std::move(state)] { return record(state); });
  }

  /// All that the next block needs.
  Result<RunState> state_now() {
    RunState state;
    for (auto& output : outputs_) state.reports.push_back(output->report_state());
    if (statistics_writer_) {
      SLIM_ASSIGN(state.statistics, statistics_writer_->state());
    }
    if (runs_forward() && journal_->blocks() >= last_forward_) calibration_.batches.clear();
    // What a file gives back lies dense and aligned in memory; so must what a run goes on with, to round alike.
    for (Carry& carry : calibration_.batches) {
      for (auto& [key, tensor] : carry) {
        if (!tensor.is_contiguous() || tensor.storage_offset() != 0)
          tensor = tensor.clone(at::MemoryFormat::Contiguous);
      }
    }
    state.calibration = calibration_;
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
    if (statistics_writer_) statistics_writer_->keep_partial(keep);
  }

  /// Adds to an error what is left of the run: everything finished, unless the input or the plugins are at fault.
  Status explain(const Status& status) {
    const Code code = status.code();
    const bool outside = code == Code::kCancelled || code == Code::kIo || code == Code::kNotFound ||
                         code == Code::kCorrupt || code == Code::kOutOfMemory;
    if (!outside || !journal_ || journal_->blocks() == 0) {
      for (auto& output : outputs_) output->discard();
      if (statistics_writer_) statistics_writer_->keep_partial(false);
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
    exec_ = make_exec(dtype, backend_.device);
    host_exec_ = make_exec(dtype, at::kCPU);
    for (OutputPlan& plan : plans) plan.config.backend = backend_.id;
    for (OutputPlan& plan : plans)
      outputs_.push_back(std::make_unique<OutputRun>(std::move(plan), model_, jobs_, progress_));
    find_last_forward();
    spill_ = std::make_unique<Spill>(CheckpointWriter::partial_of(outputs_.front()->folder()), memory_.spill);
    if (memory_.spill && runs_forward())
      note_all("activations in files", "run.max_memory", bytes_text(config_.max_memory));
    if (smaller_batches && runs_forward())
      note_all("smaller batches for the device's memory", "run.max_vram",
               std::to_string(config_.batch_size) + " samples each");
    if (!memory_.read_ahead)
      note_all("weights not read ahead", "run.max_memory", bytes_text(config_.max_memory));
    return {};
  }

  std::unique_ptr<BlockExec> make_exec(at::ScalarType dtype, at::Device device) const {
    auto exec = std::make_unique<BlockExec>(*model_.weights, dtype, device);
    exec->set_all_experts(config_.all_experts);
    return exec;
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
    auto statistics = std::make_unique<StatisticSet>(block, calibration_.tokens());
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

  Status read_samples() {
    if (config_.calib.empty()) {
      const Recipe& recipe = outputs_.front()->plan().recipe;
      const bool cache = outputs_.front()->plan().plan.kv_cache;
      return {Code::kInvalidArgument, (cache ? "kv_cache = " + outputs_.front()->plan().config.kv_cache
                                             : recipe.algorithm_ids.front()) +
                                          " needs calibration data; pass --calib FILE or DIR"};
    }
    SLIM_ASSIGN(calibration_, calibrate_input(config_, model_, *exec_, progress_, *spill_));
    if (calibration_.begun_on_host > 0) {
      note_all("batches begun on the CPU: out of the device's memory", "the model's entry",
               std::to_string(calibration_.begun_on_host) + " batches");
    }
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
      return {Code::kInvalidArgument,
              "--statistics and --save-statistics exclude each other: nothing new is collected"};
    }
    SLIM_ASSIGN(statistics_file_, StatisticsFile::open(config_.statistics));
    SLIM_ASSIGN(const Fingerprint expected, statistics_fingerprint());
    const Fingerprint& found = statistics_file_->fingerprint();
    if (const std::string differs = difference(found, expected); !differs.empty()) {
      return {Code::kInvalidArgument, config_.statistics + ": its statistics are not this run's: " + differs};
    }
    const auto saved = [&](const char* key) {
      return found.contains(key) ? std::atoll(found.at(key).c_str()) : 0;
    };
    calibration_.text_tokens = saved(kTextTokens);
    calibration_.image_tokens = saved(kImageTokens);
    note_all("statistics from a file", config_.statistics,
             std::to_string(calibration_.tokens()) + " tokens of " +
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
    SLIM_TRY(journal_->announce(kStatisticsStep));
    SLIM_ASSIGN(Fingerprint fingerprint, statistics_fingerprint());
    fingerprint[kTextTokens] = std::to_string(calibration_.text_tokens);
    fingerprint[kImageTokens] = std::to_string(calibration_.image_tokens);
    return statistics_writer_->finish(fingerprint);
  }

  // ---- blocks ----
  Status run_blocks() {
    const auto& blocks = model_.plan.blocks;
    progress_.begin("quantizing", static_cast<int64_t>(blocks.size()));
    const auto first = static_cast<size_t>(journal_->blocks());
    for (size_t i = 0; i < first; ++i) progress_.step(blocks[i].name);
    std::future<Result<std::unique_ptr<ComingWeights>>> next = load_ahead(first);
    for (size_t i = first; i < blocks.size() && !stopped(); ++i) {
      const BlockPlan& block = blocks[i];
      if (progress_.cancelled()) return {Code::kCancelled, "interrupted before " + block.name};
      BlockState state;
      state.plan = &block;
      state.runs_again = block.index < last_forward_ && !float_inputs_;
      if (!next.valid()) next = load_ahead(i);
      if (next.valid()) {
        SLIM_ASSIGN(const auto coming, next.get());
        coming->copies.wait_on_host();
        state.weights = on_device(block, std::move(coming->weights));
      }
      if (memory_.read_ahead) next = load_ahead(i + 1);
      SLIM_TRY(run_block(state));
      state = {};
      SLIM_TRY(finish_block());
      malloc_trim(0);  // what the allocator keeps in fragments would grow with the number of blocks
      progress_.step(block.name);
    }
    return jobs_.drain();
  }

  /// A block's weights, on the host or on their way to the device.
  struct ComingWeights {
    explicit ComingWeights(at::Device device) : copies(device) {}
    DeviceCopies copies;
    BlockWeights weights;
  };
  std::future<Result<std::unique_ptr<ComingWeights>>> load_ahead(size_t index) {
    const auto& blocks = model_.plan.blocks;
    if (index >= blocks.size()) return {};
    const BlockPlan& block = blocks[index];
    if (!changes(block) && block.index > last_forward_) return {};  // copied as bytes
    return std::async(std::launch::async, [this, &block]() -> Result<std::unique_ptr<ComingWeights>> {
      auto coming = std::make_unique<ComingWeights>(backend_.device);
      SLIM_ASSIGN(coming->weights, model_.weights->load(block));
      if (!backend_.device.is_cpu() && device_mode_.read_ahead) send(*coming);
      return coming;
    });
  }

  /// If there is no room for them yet, they are moved when it is their turn.
  static void send(ComingWeights& coming) {
    const c10::NoGradGuard no_grad;
    const auto there = guarded("moving between host and device", [&]() -> Result<BlockWeights> {
      BlockWeights weights = coming.weights;
      for (auto* tensors : {&weights.weight, &weights.bias}) {
        for (at::Tensor& tensor : *tensors) tensor = coming.copies.to_device(tensor);
      }
      for (auto& [name, tensor] : weights.params) tensor = coming.copies.to_device(tensor);
      coming.copies.start();
      return weights;
    });
    if (there.ok()) coming.weights = *there;
  }

  Status run_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    if (block.index <= last_forward_ && starts_stage(model_.plan, block)) {
      SLIM_TRY(replace_batches(
          block.name, [&](BlockExec& exec, Carry& there) { return model_.enter(block, exec, there); }));
    }
    if (changes(block)) {
      SLIM_TRY(make_block(state));
    } else {
      if (block.index < last_forward_) SLIM_TRY(advance(state));
      for (auto& output : outputs_) SLIM_TRY(output->copy_block(block));
    }
    exec_->release_globals();
    host_exec_->release_globals();
    return {};
  }

  Status make_block(BlockState& state) {
    const BlockPlan& block = *state.plan;
    BlockWork work;
    const Status status = make_outputs(state, work, *exec_);
    SLIM_TRY(status.code() == Code::kOutOfMemory && can_begin_again(work) ? make_on_host(state, work, status)
                                                                          : status);
    if (block.index >= last_forward_) return {};
    if (!float_inputs_) return advance(state);
    calibration_.batches = std::move(work.float_outputs);
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
    exec_->set_statistics(nullptr);
    exec_->set_overrides(nullptr);
    exec_->region_inputs().clear();
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
    SLIM_TRY(make_outputs(state, work, *host_exec_));
    state.weights = on_device(block, std::move(state.weights));
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
    Status status = output.make_block(state, statistics, exec, calibration_);
    return outputs_.size() == 1 ? status : std::move(status).in("output " + output.plan().config.output);
  }

  /// The statistics of a block: from the file of an earlier run, or from a calibration pass, which with float inputs gives the next
  /// block's too.
  Status gather(const BlockState& state, StatisticSet& statistics, BlockWork& work, BlockExec& exec) {
    return guarded(state.plan->name, [&]() -> Status {
      if (statistics_file_) {
        SLIM_TRY(statistics_file_->restore(*state.plan, statistics, exec.device()));
      } else {
        SLIM_TRY(collect(state, statistics, work.float_outputs, exec));
      }
      if (statistics_writer_ && !std::exchange(work.statistics_kept, true))
        SLIM_TRY(statistics_writer_->put(*state.plan, statistics));
      if (!statistics.empty()) statistics.finish(kExpertPriorTokens);
      return {};
    });
  }

  Status collect(const BlockState& state, StatisticSet& statistics, std::vector<Carry>& float_outputs,
                 BlockExec& exec) {
    exec.region_inputs().clear();
    const bool wants_output = float_inputs_ && state.plan->index < last_forward_;
    if (statistics.empty() && !wants_output) return {};
    exec.set_statistics(&statistics);
    float_outputs.resize(wants_output ? calibration_.batches.size() : 0);
    const auto pass = [&](size_t i, Carry& there, const Status& moved) -> Status {
      SLIM_TRY(moved);
      SLIM_TRY(forward(state, exec, there));
      SLIM_TRY(keep_region_inputs(exec));
      Spill::release(calibration_.batches[i]);
      return {};
    };
    const auto keep = [&](size_t i, Carry output) -> Status {
      SLIM_ASSIGN(float_outputs[i], kept(std::move(output)));
      return {};
    };
    SLIM_TRY(batch_stream(pass, wants_output ? keep : BatchStream::Keep())
                 .run(calibration_.batches.size(), exec.device(), device_mode_.read_ahead));
    exec.set_statistics(nullptr);
    return {};
  }

  BatchStream batch_stream(BatchStream::Pass pass, BatchStream::Keep keep) const {
    return {[this](size_t i) -> const Carry& { return calibration_.batches[i]; }, std::move(pass),
            std::move(keep)};
  }

  /// What a batch has put into regions that are replayed lies where batches do.
  Status keep_region_inputs(BlockExec& exec) {
    for (auto& [region, inputs] : exec.region_inputs()) {
      SLIM_ASSIGN(const Carry stored, spill_->store({{"input", inputs.back()}}));
      inputs.back() = stored.at("input");
    }
    return {};
  }

  /// Names the tensor that an error about NaN comes from.
  static Status blame_weights(const BlockState& state, const Status& status) {
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

  Status forward(const BlockState& state, BlockExec& exec, Carry& carry) {
    exec.set_block(state.plan, &state.weights);
    SLIM_TRY(blame_weights(state, model_.forward(*state.plan, exec, carry)));
    return progress_.cancelled() ? Status(Code::kCancelled, "interrupted in " + state.plan->name) : Status{};
  }

  Status advance(const BlockState& state) {
    return replace_batches(state.plan->name,
                           [&](BlockExec& exec, Carry& there) { return forward(state, exec, there); });
  }

  /// Every batch becomes what `pass` makes of it: on the device, or on the host where the device's memory does not do for it.
  Status replace_batches(const std::string& where, const std::function<Status(BlockExec&, Carry&)>& pass) {
    const auto on_either = [&](size_t i, Carry& there, const Status& moved) {
      Status status = moved.ok() ? pass(*exec_, there) : moved;
      if (status.code() != Code::kOutOfMemory || exec_->device().is_cpu()) return status;
      note_all("batches computed on the CPU: out of the device's memory", where, status.message());
      there = calibration_.batches[i];
      release_device_memory(exec_->device());
      status = pass(*host_exec_, there);
      host_exec_->release_globals();
      return status;
    };
    const auto keep = [&](size_t i, Carry made) -> Status {
      SLIM_ASSIGN(calibration_.batches[i], kept(std::move(made)));
      return {};
    };
    return batch_stream(on_either, keep)
        .run(calibration_.batches.size(), exec_->device(), device_mode_.read_ahead);
  }

  /// Where a block's weights do not fit the device together, they stay on the host, and each moves when it is used.
  BlockWeights on_device(const BlockPlan& block, BlockWeights weights) {
    auto there =
        guarded(block.name, [&]() -> Result<BlockWeights> { return moved(weights, backend_.device); });
    if (there.ok()) return *std::move(there);
    note_all("weights moved one by one: out of the device's memory", block.name, there.status().message());
    return weights;
  }

  /// A batch between blocks lies on the host, or in files.
  Result<Carry> kept(Carry carry) const { return spill_->store(carry_on(carry, at::kCPU)); }

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
      note_all("later blocks saw the float model", "run.propagate",
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
    std::vector<Report> reports;
    for (const auto& output : outputs_) reports.push_back(output->report(calibration_, backend_.device));
    return join_reports(reports);
  }

  void note_all(std::string_view kind, std::string_view where, std::string_view detail) {
    for (auto& output : outputs_) output->notes().note(kind, where, detail);
  }

  static constexpr const char* kTextTokens = "text tokens";
  static constexpr const char* kImageTokens = "image tokens";
  static constexpr const char* kStatisticsStep = "statistics";

  RunConfig config_;  ///< with the batches that the device has room for
  int64_t asked_batch_size_;
  PluginRegistry& registry_;
  Progress& progress_;
  OpenBackend backend_;
  Model model_;
  MemoryMode memory_;
  std::unique_ptr<Spill> spill_;
  bool float_inputs_ = false;
  int32_t last_forward_ = -1;  ///< the block up to which statistics are wanted, and the model runs
  DeviceMode device_mode_;
  std::unique_ptr<BlockExec> exec_, host_exec_;
  Calibration calibration_;
  std::unique_ptr<StatisticsFile> statistics_file_;
  std::unique_ptr<StatisticsWriter> statistics_writer_;
  std::unique_ptr<Journal> journal_;
  bool started_ = false;  ///< errors from here on come with what is kept
  std::vector<std::unique_ptr<OutputRun>> outputs_;
  AsyncWriter jobs_;  ///< last member: its thread ends before anything that its jobs use
};

}  // namespace

Result<Report> quantize(const RunConfig& config, PluginRegistry& registry, Progress& progress) {
  return QuantizeRun(config, registry, progress).run();
}

}  // namespace slim
