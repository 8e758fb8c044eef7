#include "solve/run_parts.h"

#include "checkpoint/writer.h"

namespace slim {

void NotesOfAll::note(std::string_view kind, std::string_view where, std::string_view detail) {
  for (const auto& output : outputs_) output->notes().note(kind, where, detail);
}

void NotesOfAll::metric(std::string_view where, std::string_view key, double value) {
  for (const auto& output : outputs_) output->notes().metric(where, key, value);
}

RunParts::RunParts(std::unique_ptr<const Job> opened, Progress& told)
    : job(std::move(opened)),
      progress(told),
      loader(*job->model.weights, job->backend.device, job->device_mode.read_ahead, notes),
      propagation({job->dtype, job->backend.device, job->device_mode.read_ahead, job->config.all_experts},
                  job->model,
                  Spill(CheckpointWriter::partial_of(job->outputs.front().config.output), job->memory.spill),
                  notes, progress),
      statistics(job->config, job->model, job->dtype) {
  for (const OutputPlan& output : job->outputs)
    outputs.push_back(std::make_unique<OutputRun>(output, job->model, jobs, progress));
}

}  // namespace slim
