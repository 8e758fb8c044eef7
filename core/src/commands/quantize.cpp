#include <c10/core/GradMode.h>

#include <malloc.h>

#include <nlohmann/json.hpp>

#include "commands/commands.h"
#include "plan/job.h"
#include "report/join_reports.h"
#include "report/source_notes.h"
#include "resume/recovery.h"
#include "slim/ops.hpp"
#include "solve/block_pipeline.h"
#include "util/strict_json.h"
#include "util/text.h"

namespace slim {
namespace {

/// Tells what is done to need less memory.
void note_measures(const Job& job, Notes& notes) {
  if (job.memory.spill && job.runs_forward())
    notes.note("activations in files", "run.max_memory", bytes_text(job.asked.max_memory));
  if (job.config.batch_size != job.asked.batch_size && job.runs_forward()) {
    notes.note("smaller batches for the device's memory", "run.max_vram",
               std::to_string(job.config.batch_size) + " samples each");
  }
  if (!job.memory.read_ahead)
    notes.note("weights not read ahead", "run.max_memory", bytes_text(job.asked.max_memory));
}

/// Tells which files beside the weights do not go into the output.
void note_left_files(const Job& job, Notes& notes) {
  const Checkpoint& checkpoint = job.model.weights->checkpoint();
  for (const auto& [why, names] : checkpoint.left_files()) {
    for (const std::string& name : names) notes.note("files beside the weights left out", name, why);
  }
  if (job.asked.allow_outside) return;
  for (const std::string& name : checkpoint.outside_links())
    notes.note("links that lead out of the model's folder left out", name,
               "--allow-outside copies what they lead to");
}

/// Tells why later blocks did not see what the earlier ones were quantized to, where nobody asked for that.
void note_propagation(const Job& job, Notes& notes) {
  if (!job.float_inputs || job.asked.propagate != "auto" || !job.runs_forward()) return;
  notes.note("later blocks saw the float model", "run.propagate",
             job.outputs.size() > 1 ? "several outputs share one calibration" : "statistics were kept");
}

/// What each block is expected to take, on a machine of usual proportions: only shares matter.
std::vector<double> planned_seconds(const Job& job) {
  std::vector<double> seconds;
  for (const PlannedWork& work : job.work) seconds.push_back(sum(estimate_seconds(work, {})));
  return seconds;
}

Status make_blocks(RunParts& parts, Recovery& recovery) {
  const auto& blocks = parts.job->model.plan.blocks;
  const auto first = static_cast<size_t>(recovery.blocks());
  parts.progress.begin("quantizing", static_cast<int64_t>(blocks.size()));
  parts.progress.expect(planned_seconds(*parts.job));
  for (size_t i = 0; i < first; ++i) parts.progress.step(blocks[i].name);
  BlockPipeline pipeline(parts);
  pipeline.read_ahead(first);
  for (size_t i = first; i < blocks.size() && !recovery.stopped(); ++i) {
    if (parts.progress.cancelled()) return {Code::kCancelled, "interrupted before " + blocks[i].name};
    parts.progress.working_on(blocks[i].name);
    SLIM_TRY(pipeline.make(i));
    SLIM_TRY(recovery.finish_block());
    malloc_trim(0);  // what the allocator keeps in fragments would grow with the number of blocks
    parts.progress.step(blocks[i].name);
  }
  return parts.jobs.drain();
}

Report completed_report(const std::string& folder) {
  return {folder + ": was complete already\n",
          json_text(nlohmann::json{{"output", folder}, {"complete", true}})};
}

Report final_report(RunParts& parts) {
  const Job& job = *parts.job;
  const std::string products = job.runs_forward() ? ops::product_text(job.dtype, job.backend.device) : "";
  std::vector<Report> reports;
  for (const auto& output : parts.outputs) {
    reports.push_back(output->report().finish(output->output(), job.model, parts.propagation.calibration(),
                                              products, job.backend.device));
  }
  return join_reports(reports);
}

Result<Report> run(RunParts& parts, Recovery& recovery) {
  SLIM_TRY(recovery.begin_or_resume());
  SLIM_TRY(make_blocks(parts, recovery));
  if (recovery.stopped()) return recovery.stopped_report();
  SLIM_TRY(recovery.check_input_unchanged());
  note_propagation(*parts.job, parts.notes);
  SLIM_TRY(recovery.finish());
  return final_report(parts);
}

}  // namespace

Result<Report> quantize(const RunConfig& config, PluginRegistry& registry, Progress& progress) {
  const c10::NoGradGuard no_grad;
  SLIM_ASSIGN(std::unique_ptr<const Job> job, Job::open(config, registry));
  RunParts parts(std::move(job), progress);
  SLIM_TRY(note_source(parts.job->model, parts.notes));
  note_measures(*parts.job, parts.notes);
  note_left_files(*parts.job, parts.notes);
  Recovery recovery(parts, registry);
  if (recovery.completed()) {
    SLIM_TRY(recovery.remove_record());
    return completed_report(parts.outputs.front()->folder());
  }
  auto report = run(parts, recovery);
  return report.ok() ? report : recovery.explain(report.status());
}

}  // namespace slim
