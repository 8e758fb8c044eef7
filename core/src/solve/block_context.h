#pragma once
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "model/block_state.h"
#include "model/model.h"
#include "plan/run_plan.h"
#include "quant/quantize.h"
#include "report/notes.h"
#include "statistics/statistic_set.h"

namespace slim {

/// Edges in the order in which they were folded, and the scale that was applied to each.
using Folds = std::vector<std::pair<const ScaleEdge*, at::Tensor>>;

/// BlockContext over a BlockState, for the layers of one part of the recipe. Folding edits weights, the producer and the statistics
/// together.
class SLIM_API BlockTransform final : public BlockContext {
 public:
  /// All must outlive the context. `exec` is used to replay regions; `carries`: one per batch, at the block's entry.
  BlockTransform(const Model& model, const RunPlan& run, size_t part, at::ScalarType scale_dtype,
                 BlockState& state, StatisticSet& statistics, BlockExec& exec,
                 const std::vector<Carry>& carries, Notes& notes)
      : model_(model),
        run_(run),
        part_(part),
        scale_dtype_(scale_dtype),
        state_(state),
        statistics_(statistics),
        exec_(exec),
        carries_(carries),
        notes_(notes) {}

  const BlockPlan& plan() const override { return *state_.plan; }
  const Scheme* scheme(LayerId id) const override;
  at::Tensor weight(LayerId id) const override;
  at::Tensor norm_weight(const ScaleEdge&) const override;
  at::ScalarType scale_dtype() const override { return scale_dtype_; }
  const Statistic* find(PortId port, std::string_view id) const override {
    return statistics_.find(port, id);
  }
  Result<double> loss(RegionId, const Overrides&) override;
  Result<at::Tensor> fold(const ScaleEdge&, const at::Tensor& s) override;
  Status set_weight(LayerId, const at::Tensor&) override;
  Notes& notes() override { return notes_; }

  /// `begin` is called once, before the first fold changes anything.
  void before_first_fold(std::function<Status()> begin) { before_first_fold_ = std::move(begin); }
  /// What was folded so far: what the proof of equivalence checks.
  const Folds& folds() const { return folds_; }
  /// True if a weight was set that need not keep the function.
  bool function_changed() const { return function_changed_; }

 private:
  Result<at::Tensor> fold_norm(const ScaleEdge&, const at::Tensor& s);
  Result<at::Tensor> fold_rows(const ScaleEdge&, const at::Tensor& s);
  Result<at::Tensor> region_output(RegionId, size_t batch, const Overrides*);
  bool stays_in_float(LayerId id) const { return !run_.scheme(state_.plan->index, id); }

  const Model& model_;
  const RunPlan& run_;
  size_t part_;
  at::ScalarType scale_dtype_;
  BlockState& state_;
  StatisticSet& statistics_;
  BlockExec& exec_;
  const std::vector<Carry>& carries_;
  Notes& notes_;
  std::function<Status()> before_first_fold_;
  Folds folds_;
  bool function_changed_ = false;
  std::map<RegionId, std::vector<at::Tensor>> references_;  ///< float outputs of replayed regions
};

/// The consumers' scale of an edge: each producer head's entries repeated for the heads that read it. [features]
SLIM_API at::Tensor consumer_scale(const ScaleEdge&, const at::Tensor& s);

/// LayerContext over a BlockState; `device`: where the tensors that it hands out are, and those of `statistics` and `port_cache`.
class SLIM_API LayerSolve final : public LayerContext, public quant::StoredWeight {
 public:
  LayerSolve(const RunPlan& run, const BlockState& state, const Layer& layer, const StatisticSet& statistics,
             at::ScalarType scale_dtype, uint64_t run_seed, TensorMap& port_cache, Notes& notes,
             at::Device device)
      : run_(run),
        state_(state),
        layer_(layer),
        statistics_(statistics),
        scale_dtype_(scale_dtype),
        run_seed_(run_seed),
        port_cache_(port_cache),
        notes_(notes),
        device_(device) {}

  const Layer& layer() const override { return layer_; }
  const Scheme& scheme() const override { return *run_.scheme(state_.plan->index, layer_.id); }
  at::Tensor weight() const override;
  at::Tensor stored_weight() const override;
  void measured(const at::Tensor& codes, const ops::RoundingError& error) override {
    codes_ = codes;
    error_ = error;
  }
  /// What a rounding to these codes has told; nothing if they are others.
  std::optional<ops::RoundingError> error_of(const at::Tensor& codes) const {
    return codes_.defined() && codes_.is_same(codes) ? std::optional(error_) : std::nullopt;
  }
  at::Tensor bias() const override;
  at::ScalarType scale_dtype() const override { return scale_dtype_; }
  const Statistic* find(std::string_view id) const override { return statistics_.find(layer_.input, id); }
  double fused_abs_max() const override;
  TensorMap& port_cache() override { return port_cache_; }
  uint64_t seed() const override;
  Notes& notes() override { return notes_; }

 private:
  const RunPlan& run_;
  const BlockState& state_;
  const Layer& layer_;
  const StatisticSet& statistics_;
  at::ScalarType scale_dtype_;
  uint64_t run_seed_;
  TensorMap& port_cache_;
  Notes& notes_;
  at::Device device_;
  at::Tensor codes_;
  ops::RoundingError error_;
};

}  // namespace slim
