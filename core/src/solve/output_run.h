#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "plan/run_plan.h"
#include "report/run_report.h"
#include "solve/block_at_work.h"
#include "solve/block_context.h"
#include "write/output_writer.h"

namespace slim {

/// One checkpoint of a run while it is made: its algorithms transform and solve each block, its writer writes what they made. Used from
/// the run's thread.
class OutputRun {
 public:
  /// All must outlive it; the jobs that it gives must have ended before it is destroyed.
  OutputRun(const OutputPlan& output, const Model& model, AsyncWriter& jobs, Progress& progress)
      : output_(output), model_(model), progress_(progress), writer_(output, model, jobs) {}

  const OutputPlan& output() const { return output_; }
  const std::string& folder() const { return output_.config.output; }
  OutputWriter& writer() { return writer_; }
  RunReport& report() { return report_; }
  const RunReport& report() const { return report_; }
  RunNotes& notes() { return report_.notes; }

  /// Makes the block anew, or copies it where nothing changes it. The statistics follow what is folded; the state is then what engines will
  /// compute with.
  Status make_block(BlockAtWork&);
  /// True while make_block() hands tensors to the writer: from then on the block cannot be made again.
  bool has_begun_writing() const { return writing_; }
  /// Ends the output; all its blocks are made.
  Status finish() { return writer_.finish(report_.scattered_groups()); }

 private:
  Status transform(BlockAtWork&);
  Status transform_parts(BlockAtWork&, const std::function<Status()>& begin_proof, Folds&,
                         bool& function_changed);
  Status collect_stale(BlockAtWork&);
  Status solve(BlockAtWork&);
  Status solve_readers(BlockAtWork&, const std::vector<const Layer*>&);
  Result<Solved> solve_layer(const BlockAtWork&, const StatisticSet&, at::Device, const Layer&,
                             TensorMap& port_cache);
  Result<Solved> solve_on_host(const BlockAtWork&, const Layer&, const Status& why);
  Status commit(BlockAtWork&, const Layer&, Solved);
  at::Tensor decoded_on(at::Device, const Solved&) const;
  Status write_cache_scales(const BlockAtWork&);
  Status check_cancelled(const std::string& where);
  const LayerDecision& decision(const BlockPlan& block, const Layer& layer) const {
    return output_.plan.layers[block.index][layer.id];
  }
  at::ScalarType scale_dtype(const Scheme& scheme) const {
    return output_.recipe.format->scale_dtype(scheme, output_.plan.dtype);
  }

  const OutputPlan& output_;
  const Model& model_;
  Progress& progress_;
  RunReport report_;
  OutputWriter writer_;
  bool writing_ = false;
};

}  // namespace slim
