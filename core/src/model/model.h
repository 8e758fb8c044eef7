#pragma once
#include <memory>
#include <string>
#include <vector>

#include "model/exec.h"
#include "model/forward_runner.h"
#include "plugin/registry.h"
#include "slim/progress.hpp"

namespace slim {

/// A checkpoint, the adapter that understands it, and its plan.
struct SLIM_API Model {
  std::string adapter_id;
  std::unique_ptr<WeightSource> weights;
  Owned<ModelAdapter> adapter;
  ModelPlan plan;

  /// `adapter`: empty: by config.json's model_type.
  static Result<Model> open(const std::string& folder, const std::string& adapter, PluginRegistry&);
  /// "auto" is the checkpoint's own dtype.
  Result<at::ScalarType> compute_dtype(const std::string& name) const;
  /// Encodes documents and starts their batches: one carry each, at the entry of the first block.
  Result<Carry> begin(std::span<const Sample> samples, BlockExec&) const;
  Status enter(const BlockPlan& block, BlockExec&, Carry&) const;
  /// One block; errors name it, and NaN or Inf in its output is one.
  Status forward(const BlockPlan& block, BlockExec&, Carry&) const;
};

/// True if the block is the first of its stage (its batches must enter the stage before).
SLIM_API bool starts_stage(const ModelPlan&, const BlockPlan&);

/// Checks that the plan names every tensor of the checkpoint exactly once.
SLIM_API Status check_complete(const ModelPlan&, const std::map<std::string, TensorSpec>& tensors);

/// Runs whole forward passes block by block on a device, each block's weights read once per pass and kept there while they fit the
/// budget. Batches lie on the host between blocks; one that the device has no memory for is computed on the host, and noted.
class SLIM_API ForwardPass {
 public:
  /// `model` and `notes` must outlive it.
  ForwardPass(const Model& model, const ForwardRunner::Options&, int64_t cache_bytes, Notes& notes);
  BlockExec& exec() { return runner_.exec(); }
  /// From begin() or next() to the end of the last block before the head, for all batches together. `first_stage`: skip the
  /// blocks before it ("language" when generating).
  Status run(std::vector<Carry>& batches, std::string_view first_stage, std::vector<MemoryCache>* caches,
             Progress* progress);
  /// Logits [rows, vocabulary] fp32 of the given rows of the carry's hidden states, on the device.
  Result<at::Tensor> logits(const Carry& carry, const at::Tensor& rows);

 private:
  Result<const BlockWeights*> weights(const BlockPlan&);

  const Model& model_;
  ForwardRunner runner_;
  int64_t cache_bytes_, cached_bytes_ = 0;
  std::map<int32_t, BlockWeights> cached_;
  BlockWeights current_;
};

}  // namespace slim
