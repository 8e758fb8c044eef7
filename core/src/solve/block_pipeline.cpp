#include "solve/block_pipeline.h"

#include <malloc.h>

#include <chrono>

#include "model/device_memory.h"
#include "plugin/guard.h"
#include "slim/phase.hpp"

namespace slim {
namespace {

/// Tokens of the layer's distribution that stand behind every expert's own: enough for a usable Gram, too few to outweigh
/// what the expert saw.
constexpr double kExpertPriorTokens = 128;

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

/// A source that was quantized computes with activations in float: what is served is quantized anew.
BlockWeights in_float(BlockWeights weights) {
  for (auto& activation : weights.activation) activation.reset();
  return weights;
}

}  // namespace

/// How far a block has come.
struct BlockPipeline::Attempt {
  std::vector<Carry> float_outputs;
  std::vector<RunReport> told;   ///< by the outputs, before each was made
  bool statistics_kept = false;  ///< in the file of run.save_statistics
  size_t outputs_made = 0;
};

void BlockPipeline::read_ahead(size_t index) {
  const auto& blocks = job_.model.plan.blocks;
  if (index < blocks.size() && job_.needs_weights(blocks[index])) parts_.loader.begin(blocks[index]);
}

Status BlockPipeline::make(size_t index) {
  const BlockPlan& block = job_.model.plan.blocks[index];
  const BlockClock clock;
  BlockWeights weights;
  if (job_.needs_weights(block)) {
    SLIM_ASSIGN(weights, parts_.loader.take(block));
  }
  if (job_.memory.read_ahead) read_ahead(index + 1);
  SLIM_TRY(make_from_weights(std::move(weights), block));
  parts_.propagation.runner().release_globals();
  for (const auto& output : parts_.outputs)
    output->report().record_block(block.name, clock.seconds(), clock.phases());
  return {};
}

/// The weights are freed when it returns.
Status BlockPipeline::make_from_weights(BlockWeights weights, const BlockPlan& block) {
  Propagation& propagation = parts_.propagation;
  BlockAtWork work{{}, nullptr, &propagation.runner().exec(), &propagation};
  work.state.plan = &block;
  work.state.weights = in_float(std::move(weights));
  work.state.runs_again = job_.feeds_later(block) && !job_.float_inputs;
  if (block.index <= job_.last_forward && starts_stage(job_.model.plan, block))
    SLIM_TRY(propagation.enter(block));
  if (job_.changes(block)) return make_changed(work);
  if (job_.feeds_later(block)) SLIM_TRY(propagation.advance(work.state));
  for (const auto& output : parts_.outputs) SLIM_TRY(output->writer().copy_block(block));
  return {};
}

Status BlockPipeline::make_changed(BlockAtWork& work) {
  Attempt attempt;
  const Status status = make_outputs(work, attempt);
  SLIM_TRY(status.code() == Code::kOutOfMemory && can_begin_again(attempt)
               ? make_on_host(work, attempt, status)
               : status);
  if (!job_.feeds_later(work.plan())) return {};
  if (!job_.float_inputs) return parts_.propagation.advance(work.state);
  parts_.propagation.replace(std::move(attempt.float_outputs));
  return {};
}

/// Only a device has another place to go to, and what is handed to the writer is not taken back.
bool BlockPipeline::can_begin_again(const Attempt& attempt) const {
  return !job_.backend.device.is_cpu() && attempt.outputs_made < parts_.outputs.size() &&
         !parts_.outputs[attempt.outputs_made]->has_begun_writing();
}

/// The block again from its weights, on the host, for the outputs that are left.
Status BlockPipeline::make_on_host(BlockAtWork& work, Attempt& attempt, const Status& why) {
  ForwardRunner& runner = parts_.propagation.runner();
  runner.reset();
  const BlockPlan& block = work.plan();
  const bool runs_again = work.state.runs_again;
  work.state = {};
  work.statistics.reset();
  release_device_memory(job_.backend.device);
  work.state.plan = &block;
  work.state.runs_again = runs_again;
  work.exec = &runner.host_exec();
  SLIM_ASSIGN(BlockWeights weights, job_.model.weights->load(block));
  work.state.weights = in_float(std::move(weights));
  auto& outputs = parts_.outputs;
  if (attempt.outputs_made < attempt.told.size())
    outputs[attempt.outputs_made]->report() = attempt.told[attempt.outputs_made];
  for (size_t i = attempt.outputs_made; i < outputs.size(); ++i)
    outputs[i]->notes().note("computed on the CPU: out of the device's memory", block.name, why.message());
  attempt.told.resize(attempt.outputs_made);
  attempt.float_outputs.clear();
  SLIM_TRY(make_outputs(work, attempt));
  work.state.weights = parts_.loader.on_device(block, std::move(work.state.weights));
  return {};
}

Status BlockPipeline::make_outputs(BlockAtWork& work, Attempt& attempt) {
  work.exec->region_inputs().clear();
  work.statistics = job_.observations(work.plan(), parts_.propagation.calibration().tokens());
  SLIM_TRY(gather(work, attempt));
  auto& outputs = parts_.outputs;
  for (size_t& i = attempt.outputs_made; i < outputs.size(); ++i) {
    attempt.told.push_back(outputs[i]->report());
    if (i + 1 == outputs.size()) {
      SLIM_TRY(make_output(*outputs[i], work));
      continue;
    }
    BlockAtWork own = work.copy();
    SLIM_TRY(make_output(*outputs[i], own));
  }
  work.exec->region_inputs().clear();
  work.statistics.reset();
  return {};
}

Status BlockPipeline::make_output(OutputRun& output, BlockAtWork& work) {
  Status status = output.make_block(work);
  return parts_.outputs.size() == 1 ? status : std::move(status).in("output " + output.folder());
}

/// The statistics of a block: from the file of an earlier run, or from a calibration pass, which with float inputs gives the next
/// block's too.
Status BlockPipeline::gather(BlockAtWork& work, Attempt& attempt) {
  const bool wants_outputs = job_.float_inputs && job_.feeds_later(work.plan());
  KeptStatistics& kept = parts_.statistics;
  return guarded(work.plan().name, [&]() -> Status {
    SLIM_TRY(kept.given() ? kept.restore(work.plan(), *work.statistics, work.device())
                          : work.propagation->collect(work.state, *work.statistics, *work.exec,
                                                      wants_outputs ? &attempt.float_outputs : nullptr));
    if (!std::exchange(attempt.statistics_kept, true)) SLIM_TRY(kept.put(work.plan(), *work.statistics));
    if (!work.statistics->empty()) work.statistics->finish(kExpertPriorTokens);
    return {};
  });
}

}  // namespace slim
