#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>

#include "checkpoint/async_writer.h"
#include "checkpoint/writer.h"
#include "model/block_state.h"
#include "model/model.h"
#include "plan/run_plan.h"

namespace slim {

/// Writes one output of a run: encodes quantized layers and copies everything else, in the thread of `jobs`. Each tensor is written once.
/// Used from the run's thread.
class OutputWriter {
 public:
  /// All must outlive the writer; the jobs that it gave must have ended before it is destroyed.
  OutputWriter(const OutputPlan& output, const Model& model, AsyncWriter& jobs)
      : output_(output), model_(model), jobs_(jobs) {}

  /// Reserves the output folder, or takes over that of an interrupted run.
  Status create(bool resume);
  /// Counts these tensors, with their checksums, as written by the interrupted run.
  Status adopt(const std::map<std::string, uint64_t>& tensors);
  CheckpointWriter& checkpoint() { return *checkpoint_; }
  /// Deletes the unfinished folder when the writer ends.
  void discard();

  /// Encodes a solved layer, whose tensors lie on the host, in the format of the output.
  Status write_layer(const Layer&, const Scheme&, Solved);
  /// Writes the float tensors of a block that were changed by a fold, and float layers that are slices of a replaced tensor; layers of the
  /// state that were changed are then in the model's dtype again.
  Status write_changed(BlockState&);
  /// Writes a tensor that was made, from any device.
  Status write_tensor(const std::string& name, const at::Tensor&);
  /// Copies what is left of a block's tensors from the input.
  Status copy_block(const BlockPlan&);
  /// Writes globals, config.json and side files, and gives the folder its final name. All jobs end before. `scattered_groups`: a layer whose
  /// groups are not runs of consecutive channels was written.
  Status finish(bool scattered_groups);

 private:
  Status copy_tensor(const std::string& name);
  Status write_side_files(bool scattered_groups);
  at::Tensor in_model_dtype(const at::Tensor& weight) const;
  Dtype announced_dtype(const std::string& name) const { return dtypes_.at(name); }

  const OutputPlan& output_;
  const Model& model_;
  AsyncWriter& jobs_;
  std::set<std::string> written_;
  std::map<std::string, Dtype> dtypes_;  ///< of everything that is written
  std::unique_ptr<CheckpointWriter> checkpoint_;
};

}  // namespace slim
