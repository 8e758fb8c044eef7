#include "plan/job.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "model/device_memory.h"
#include "slim/ops.hpp"

namespace slim {

Result<std::unique_ptr<Job>> Job::open(const RunConfig& asked, PluginRegistry& registry) {
  if (asked.output.empty()) return Status(Code::kInvalidArgument, "no output folder; pass --output");
  if (asked.threads > 0) at::set_num_threads(asked.threads);
  auto job = std::make_unique<Job>();
  job->asked = job->config = asked;
  SLIM_ASSIGN(job->outputs, make_recipes(asked, registry));
  SLIM_TRY(job->decide_propagation());
  SLIM_ASSIGN(job->backend, open_backend(asked.backend, registry));
  ops::force_reference(asked.kernels == "reference");
  SLIM_ASSIGN(job->model, Model::open(asked.model, asked.adapter, registry));
  SLIM_TRY(make_run_plans(job->outputs, job->model));
  SLIM_TRY(job->fit_device());
  SLIM_ASSIGN(job->memory, choose_memory_mode(job->config, job->model, job->outputs));
  SLIM_ASSIGN(job->dtype, job->model.compute_dtype(asked.dtype));
  job->work = count_work(job->config, job->model, job->outputs);
  for (OutputPlan& output : job->outputs) output.config.backend = job->backend.id;
  job->find_last_forward();
  return job;
}

/// One forward pass serves several outputs, or a later run, only if it is the float model's.
Status Job::decide_propagation() {
  const bool kept = !asked.save_statistics.empty() || !asked.statistics.empty();
  if (asked.propagate == "quantized" && (kept || outputs.size() > 1)) {
    return {Code::kInvalidArgument, std::string("run.propagate = quantized: with ") +
                                        (kept ? "kept statistics" : "several outputs") +
                                        " later blocks can only see the float model; use auto or float"};
  }
  float_inputs = asked.propagate == "float" || (asked.propagate == "auto" && (kept || outputs.size() > 1));
  return {};
}

Status Job::fit_device() {
  device_mode.batch_size = asked.batch_size;
  if (backend.device.is_cpu()) return {};
  SLIM_ASSIGN(device_mode, choose_device_mode(config, model, outputs, free_device_memory(backend.device)));
  reset_peak_device_memory(backend.device);
  config.batch_size = device_mode.batch_size;
  return {};
}

std::unique_ptr<StatisticSet> Job::observations(const BlockPlan& block, int64_t tokens) const {
  auto statistics = std::make_unique<StatisticSet>(block, tokens, config.normalize_tokens);
  for (const OutputPlan& output : outputs) {
    if (output.plan.changes(block)) observe(output, block, *statistics);
  }
  return statistics;
}

void Job::find_last_forward() {
  if (!asked.statistics.empty()) return;  // nothing is collected
  for (const BlockPlan& block : model.plan.blocks) {
    if (!observations(block, 0)->empty()) last_forward = block.index;
  }
}

bool Job::changes(const BlockPlan& block) const {
  return std::any_of(outputs.begin(), outputs.end(),
                     [&](const OutputPlan& output) { return output.plan.changes(block); });
}

}  // namespace slim
