#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "slim/adapter.hpp"
#include "slim/dtype.hpp"
#include "slim/plan.hpp"
#include "slim/status.hpp"

/// Building a ModelPlan while checking every tensor against the checkpoint.
namespace slim::model {

class PlanBuilder;

/// A linear layer to be added to a block.
struct LinearSpec {
  std::string name;  ///< full module name; the weight is `name + ".weight"`, the bias `name + ".bias"`
  int64_t out = 0, in = 0;
  PortId input = 0;
  Role role = Role::kOther;
  bool bias = false;
  int32_t expert = -1;
};

/// Adds to one block of a plan. Valid while its PlanBuilder lives.
class BlockBuilder {
 public:
  PortId port(const std::string& name, int64_t features);
  /// A layer with a weight tensor of its own.
  LayerId linear(const LinearSpec&);
  /// A layer whose weight is part of a tensor (a fused or packed one) claimed with PlanBuilder::claim. The
  /// bias is the caller's too.
  LayerId linear(const LinearSpec&, WeightRef weight);
  void param(const std::string& tensor, const std::vector<int64_t>& shape);
  RegionId region(const std::string& name);
  void fuse(const std::string& name, std::vector<LayerId> layers);
  /// A norm that feeds a port: `norm + ".weight"`, with `norm + ".bias"` if `bias`.
  void norm_edge(const std::string& norm, bool bias, PortId port, std::vector<LayerId> consumers,
                 RegionId region);
  /// A linear layer whose output rows feed a port, channel by channel; repeat and head_dim as in ScaleEdge.
  void linear_edge(LayerId producer, PortId port, std::vector<LayerId> consumers, int64_t repeat = 1,
                   int64_t head_dim = 0);
  /// The block so far, for what has no function here (experts, ports with parents).
  BlockPlan& plan();
  PlanBuilder& owner() { return *owner_; }

 private:
  friend class PlanBuilder;
  BlockBuilder(PlanBuilder* owner, size_t index) : owner_(owner), index_(index) {}
  PlanBuilder* owner_;
  size_t index_;
};

/// The first of the prefixes with which `prefix + name` is a tensor; the first of all if none is.
std::string stored_prefix(const std::map<std::string, TensorSpec>& tensors,
                          const std::vector<std::string>& prefixes, const std::string& name);

/// Collects the blocks of a plan. The first error (a tensor that is missing, of a wrong shape or dtype) is
/// kept and returned by finish(), so that the description of an architecture reads without error handling.
class PlanBuilder {
 public:
  PlanBuilder(std::string family, const std::map<std::string, TensorSpec>& tensors);

  BlockBuilder block(const std::string& name, const std::string& stage);
  void global(const std::string& tensor, const std::vector<int64_t>& shape);
  void ignore(std::vector<std::string> patterns);  ///< ModelPlan::default_ignore
  bool has(const std::string& tensor) const { return tensors_.count(tensor) > 0; }
  /// Null if the checkpoint has no such tensor.
  const TensorSpec* find(const std::string& tensor) const;
  /// Marks a tensor as named by the plan, checking that it is there, a float, and of this shape.
  void claim(const std::string& tensor, const std::vector<int64_t>& shape);
  void fail(Status);
  bool ok() const { return error_.ok(); }
  /// Names a tensor that is not written: engines use `copy_of` in its place.
  void leave_out(const std::string& tensor, const std::string& copy_of);
  /// Errors: the first one kept, or a tensor in a numbered block that nothing has named. Others that nothing has named are copied beside
  /// the model; rotary tables are left out.
  Result<ModelPlan> finish();

 private:
  friend class BlockBuilder;
  const std::map<std::string, TensorSpec>& tensors_;
  std::set<std::string> claimed_;
  ModelPlan plan_;
  Status error_;
};

/// The layer of a block by its full name; the plan is the adapter's own, so it must be there (kInternal
/// ExecError otherwise).
LayerId layer_id(const BlockPlan&, const std::string& name);
/// The region of a block by its name, as above.
RegionId region_id(const BlockPlan&, const std::string& name);

/// The carry's "hidden" after a block that adds its regions to it, one after the other. `stage` has
/// region(block, id, exec, carry, x), what a region adds.
template <class Stage>
at::Tensor add_regions(const Stage& stage, const BlockPlan& block, Exec& exec, const Carry& carry) {
  at::Tensor hidden = carry.at("hidden");
  for (const Region& part : block.regions) {
    exec.region_input(part.id, hidden);
    hidden = hidden + stage.region(block, part.id, exec, carry, hidden);
  }
  return hidden;
}

}  // namespace slim::model
