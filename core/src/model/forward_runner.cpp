#include "model/forward_runner.h"

#include "model/device_memory.h"
#include "util/device_moves.h"

namespace slim {

ForwardRunner::ForwardRunner(const WeightSource& source, const Options& options, Notes& notes)
    : options_(options),
      notes_(notes),
      exec_(source, options.dtype, options.device),
      host_exec_(source, options.dtype, at::kCPU) {
  exec_.set_all_experts(options.all_experts);
  host_exec_.set_all_experts(options.all_experts);
}

Status ForwardRunner::run(const std::string& where, size_t count, const Batch& batch, const Pass& pass,
                          const Keep& keep) {
  const auto on_either = [&](size_t i, Carry& there, const Status& moved) {
    Status status = moved.ok() ? pass(i, exec_, there) : moved;
    if (status.code() != Code::kOutOfMemory || exec_.device().is_cpu()) return status;
    notes_.note("batches computed on the CPU: out of the device's memory", where, status.message());
    there = carry_on(batch(i), at::kCPU);  // the entry of the model may have left it on the device
    release_device_memory(exec_.device());
    status = pass(i, host_exec_, there);
    host_exec_.release_globals();
    return status;
  };
  return BatchStream(batch, on_either, keep).run(count, exec_.device(), options_.overlap);
}

Status ForwardRunner::run_with(BlockExec& exec, size_t count, const Batch& batch, const Pass& pass,
                               const Keep& keep) const {
  const auto there_only = [&](size_t i, Carry& there, const Status& moved) -> Status {
    SLIM_TRY(moved);
    return pass(i, exec, there);
  };
  return BatchStream(batch, there_only, keep).run(count, exec.device(), options_.overlap);
}

void ForwardRunner::reset() {
  for (BlockExec* exec : {&exec_, &host_exec_}) {
    exec->set_statistics(nullptr);
    exec->set_overrides(nullptr);
    exec->region_inputs().clear();
  }
}

void ForwardRunner::release_globals() {
  exec_.release_globals();
  host_exec_.release_globals();
}

}  // namespace slim
