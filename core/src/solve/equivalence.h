#pragma once
#include "solve/block_context.h"

namespace slim {

/// Proves after a block's transform that its float function has not moved: the block's contribution in fp32 on one batch, before
/// and after, must agree to rounding, for everything that it hands on. A bug in an adapter's scale edges or in an algorithm's
/// scale shows here, and not as a worse model.
class SLIM_API EquivalenceProof {
 public:
  /// Runs the block as it is. `carry`: a batch at the block's entry. `device`: where the state's tensors are.
  static Result<EquivalenceProof> before(const Model&, const BlockState&, const Carry& carry,
                                         at::Device device = at::kCPU);
  /// kNumeric names the edge at which the function moved, with the error found and allowed.
  Status check(const BlockState& after, const Folds&, const RunPlan&) const;
  /// Relative root mean square error of the last check.
  double error() const { return error_; }

 private:
  EquivalenceProof(const Model& model, const Carry& carry, at::Device device)
      : model_(&model), carry_(carry), device_(device) {}
  /// What the block makes of each entry, less what the entry was where the shape has stayed (a patch merger's changes).
  Result<Carry> contribution(const BlockState&) const;
  /// Of the entry that moved most.
  Result<double> relative_error(const BlockState&) const;
  Status name_edge(const BlockState& after, const Folds&, const RunPlan&) const;

  const Model* model_;
  Carry carry_;
  at::Device device_;
  Carry reference_;
  mutable double error_ = 0;
};

}  // namespace slim
