#include "resume/recovery.h"

#include <filesystem>

#include <nlohmann/json.hpp>

#include "model/model_fingerprint.h"
#include "resume/run_fingerprint.h"
#include "util/strict_json.h"
#include "util/text.h"

namespace slim {
namespace {

constexpr const char* kStatisticsStep = "statistics";

std::string step_of(size_t output) { return "output " + std::to_string(output + 1); }

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

std::string Recovery::partial() const {
  return CheckpointWriter::partial_of(parts_.outputs.front()->folder());
}

// ---- the beginning ---------------------------------------------------------------------------------------------------

bool Recovery::completed() const {
  return job_.asked.resume && exists(Journal::folder_in(parts_.outputs.front()->folder()));
}

Status Recovery::begin_or_resume() {
  const std::string folder = partial();
  const int64_t left = Journal::blocks_in(folder);
  if (job_.asked.resume && left > 0) {
    SLIM_TRY(resume(folder));
  } else {
    SLIM_TRY(check_leftovers(folder, left));
    SLIM_TRY(begin(folder));
  }
  started_ = true;
  return {};
}

Status Recovery::check_leftovers(const std::string& partial, int64_t blocks) {
  if (job_.asked.resume) parts_.notes.note("nothing to resume", partial, "the run began anew");
  if (blocks == 0 || job_.asked.overwrite || !CheckpointWriter::check_unused(partial).ok()) return {};
  return {Code::kInvalidArgument, partial + ": holds " + std::to_string(blocks) +
                                      " finished blocks of an interrupted run; go on with --resume, or "
                                      "give --overwrite to begin anew"};
}

Status Recovery::begin(const std::string& partial) {
  for (auto& output : parts_.outputs)
    SLIM_TRY(output->writer().create(false));  // first: reading samples may take long
  SLIM_TRY(open_statistics());
  if (job_.runs_forward()) SLIM_TRY(begin_propagation());
  SLIM_TRY(create_statistics());
  SLIM_ASSIGN(const Fingerprint now, fingerprint());
  SLIM_ASSIGN(journal_, Journal::begin(partial, now));
  return {};
}

Status Recovery::begin_propagation() {
  if (!job_.asked.calib.empty()) return parts_.propagation.begin(job_.config);
  const OutputPlan& output = job_.outputs.front();
  return {Code::kInvalidArgument, (output.plan.kv_cache ? "kv_cache = " + output.config.kv_cache
                                                        : output.recipe.algorithm_ids.front()) +
                                      " needs calibration data; pass --calib FILE or DIR"};
}

Status Recovery::resume(const std::string& partial) {
  SLIM_ASSIGN(journal_, Journal::open(partial));
  SLIM_ASSIGN(const Fingerprint expected, fingerprint());
  const std::string differs = difference(journal_->fingerprint(), expected);
  if (!differs.empty()) {
    return {Code::kInvalidArgument, partial + ": the interrupted run was another: " + differs +
                                        "; undo that, or begin anew with --overwrite and without --resume"};
  }
  SLIM_TRY(check_inputs());
  SLIM_ASSIGN(RunState state, journal_->state());
  SLIM_TRY(open_statistics());
  auto& outputs = parts_.outputs;
  for (size_t i = 0; i < outputs.size(); ++i) {
    SLIM_TRY(outputs[i]->report().restore(state.reports.at(i)));
    if (output_done(i)) continue;
    SLIM_TRY(outputs[i]->writer().create(true));
    SLIM_TRY(outputs[i]->writer().adopt(journal_->tensors(i)));
  }
  SLIM_TRY(parts_.propagation.resume(std::move(state.calibration)));
  if (!state.statistics.empty() && !statistics_done()) SLIM_TRY(parts_.statistics.resume(state.statistics));
  parts_.notes.note("resumed", partial, "after " + std::to_string(journal_->blocks()) + " blocks");
  return {};
}

/// The tensors behind the finished blocks are those that they were made from: files with other bytes may have the old size and time.
Status Recovery::check_inputs() {
  const auto& blocks = job_.model.plan.blocks;
  const std::vector<uint64_t>& inputs = journal_->inputs();
  if (inputs.size() > blocks.size())
    return {Code::kCorrupt, partial() + ": its record has " + std::to_string(inputs.size()) +
                                " blocks, the model " + std::to_string(blocks.size()) +
                                "; start again without --resume"};
  parts_.progress.begin("checking what was read", static_cast<int64_t>(inputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (parts_.progress.cancelled()) return {Code::kCancelled, "interrupted before " + blocks[i].name};
    SLIM_ASSIGN(const uint64_t checksum, block_checksum(job_.model, blocks[i]));
    if (checksum != inputs[i])
      return {Code::kInvalidArgument,
              job_.asked.model + ": the tensors of " + blocks[i].name +
                  " are no longer those that the interrupted run read; put the old files back, or begin anew "
                  "with --overwrite and without --resume"};
    parts_.progress.step(blocks[i].name);
  }
  return {};
}

Result<Fingerprint> Recovery::fingerprint() {
  std::vector<const OutputPlan*> plans;
  for (const OutputPlan& output : job_.outputs) plans.push_back(&output);
  // as asked: how much room the device has may change; batches are the record's
  return run_fingerprint(job_.asked, job_.backend.id, plans, job_.model, registry_);
}

// ---- kept statistics -------------------------------------------------------------------------------------------------

Status Recovery::open_statistics() {
  KeptStatistics& statistics = parts_.statistics;
  SLIM_TRY(statistics.open());
  if (!statistics.given()) return {};
  parts_.propagation.count_tokens(statistics.text_tokens(), statistics.image_tokens());
  parts_.notes.note(
      "statistics from a file", job_.asked.statistics,
      std::to_string(parts_.propagation.calibration().tokens()) + " tokens of " + statistics.source());
  return {};
}

Status Recovery::create_statistics() {
  if (job_.asked.save_statistics.empty()) return {};
  if (!job_.runs_forward()) return {Code::kInvalidArgument, "--save-statistics: the algorithm collects none"};
  int64_t count = 0;
  for (const BlockPlan& block : job_.model.plan.blocks) {
    SLIM_TRY(job_.observations(block, 0)->for_each([&](const Port&, const std::string&, Statistic&) {
      ++count;
      return Status{};
    }));
  }
  return parts_.statistics.create(count);
}

Status Recovery::finish_statistics() {
  if (!parts_.statistics.kept()) return {};
  SLIM_TRY(journal_->announce(kStatisticsStep));
  return parts_.statistics.finish(parts_.propagation.calibration());
}

bool Recovery::statistics_done() const {
  return journal_->announced(kStatisticsStep) && !exists(job_.asked.save_statistics + ".partial");
}

// ---- blocks ----------------------------------------------------------------------------------------------------------

bool Recovery::stopped() const {
  return job_.asked.stop_after_blocks > 0 && blocks() >= job_.asked.stop_after_blocks &&
         blocks() < static_cast<int64_t>(job_.model.plan.blocks.size());
}

Status Recovery::finish_block() {
  const bool waits = job_.runs_forward() || parts_.statistics.kept() || job_.asked.stop_after_blocks > 0;
  if (waits) SLIM_TRY(parts_.jobs.drain());  // a slow disk must not let finished blocks pile up
  SLIM_ASSIGN(RunState state, state_now());
  if (waits) return record(state);
  return parts_.jobs.submit(0, [this, state = std::move(state)] { return record(state); });
}

/// All that the next block needs.
Result<RunState> Recovery::state_now() {
  RunState state;
  for (auto& output : parts_.outputs) state.reports.push_back(output->report().state());
  SLIM_ASSIGN(state.statistics, parts_.statistics.state());
  if (job_.runs_forward() && blocks() >= job_.last_forward) parts_.propagation.forget();
  state.calibration = parts_.propagation.calibration();
  return state;
}

/// What was handed to the writer is on the disk, and the record says so.
Status Recovery::record(const RunState& state) {
  std::vector<std::map<std::string, uint64_t>> tensors;
  for (auto& output : parts_.outputs) {
    SLIM_ASSIGN(tensors.emplace_back(), output->writer().checkpoint().sync_finished());
  }
  SLIM_ASSIGN(const uint64_t input,
              block_checksum(job_.model, job_.model.plan.blocks[static_cast<size_t>(blocks())]));
  SLIM_TRY(journal_->record(tensors, input, state));
  for (const Carry& carry : state.calibration.batches) Spill::release(carry);
  keep_partial(true);
  return {};
}

void Recovery::keep_partial(bool keep) {
  for (auto& output : parts_.outputs) output->writer().checkpoint().keep_partial(keep);
  parts_.statistics.keep_partial(keep);
}

// ---- the end ---------------------------------------------------------------------------------------------------------

Status Recovery::check_input_unchanged() const {
  const auto begun = journal_->fingerprint().find(kWeightFiles);
  if (begun != journal_->fingerprint().end() && begun->second == weight_files_stamp(job_.model)) return {};
  return {Code::kCorrupt, job_.asked.model +
                              ": its weight files were changed or removed during the run, so that the "
                              "output may mix two models; "
                              "begin anew, or put the old files back as they were"};
}

Status Recovery::finish() {
  auto& outputs = parts_.outputs;
  for (size_t i = outputs.size(); i-- > 1;) {  // the first holds the record: it comes last
    if (output_done(i)) continue;
    SLIM_TRY(journal_->announce(step_of(i)));
    SLIM_TRY(outputs[i]->finish());
  }
  SLIM_TRY(finish_statistics());
  SLIM_TRY(journal_->announce(step_of(0)));
  SLIM_TRY(outputs.front()->finish());
  return remove_record();
}

bool Recovery::output_done(size_t output) const {
  return journal_->announced(step_of(output)) &&
         !CheckpointWriter::is_unfinished(parts_.outputs[output]->folder());
}

Status Recovery::remove_record() const {
  std::error_code error;
  const std::string folder = Journal::folder_in(parts_.outputs.front()->folder());
  std::filesystem::remove_all(folder, error);
  return error ? Status(Code::kIo, folder + ": cannot delete it: " + error.message()) : Status{};
}

Status Recovery::explain(const Status& status) {
  if (!started_) return status;
  parts_.jobs.cancel();
  const Code code = status.code();
  const bool outside = code == Code::kCancelled || code == Code::kIo || code == Code::kNotFound ||
                       code == Code::kCorrupt || code == Code::kOutOfMemory;
  if (!outside || blocks() == 0) {
    for (auto& output : parts_.outputs) output->writer().discard();
    parts_.statistics.keep_partial(false);
    return code == Code::kCancelled ? Status(code, status.message() + "; nothing was written") : status;
  }
  return {code, status.message() + "; " + std::to_string(blocks()) + " of " +
                    std::to_string(job_.model.plan.blocks.size()) + " blocks are kept in " + partial() +
                    ": go on with --resume"};
}

Report Recovery::stopped_report() const {
  return {"stopped after       " + std::to_string(blocks()) + " of " +
              std::to_string(job_.model.plan.blocks.size()) + " blocks, kept in " + partial() +
              ": go on with --resume\npeak RAM            " + bytes_text(peak_resident_bytes()) + "\n",
          json_text(nlohmann::json{{"output", parts_.outputs.front()->folder()},
                                   {"partial", partial()},
                                   {"blocks", blocks()},
                                   {"peak_rss_bytes", peak_resident_bytes()}})};
}

}  // namespace slim
