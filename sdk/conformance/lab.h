#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "slim/adapter.hpp"
#include "slim/algorithm.hpp"

/// A host on a bench: what slim gives to plugins, as small as it can be, with faults on request. It shares no code with the run,
/// so that the two check each other.
namespace slim::conformance {

/// The scheme of a name, with groups of `group` where it has groups.
Result<Scheme> bench_scheme(const std::string& name, int64_t group);

/// The tensors of a block, fp32.
struct BlockTensors {
  std::map<LayerId, at::Tensor> weight, bias;
  TensorMap params;
};

/// Exec over tensors in memory; sees everything that passes.
class LabExec final : public Exec {
 public:
  using Lookup = std::function<Result<at::Tensor>(const std::string&)>;
  /// `globals` gives tensors outside the block, in any float dtype.
  explicit LabExec(Lookup globals) : globals_(std::move(globals)) {}

  void set_block(const BlockPlan* block, const BlockTensors* tensors) {
    block_ = block;
    tensors_ = tensors;
  }
  const Overrides* overrides = nullptr;
  KeyValueCache* keys_and_values = nullptr;
  /// Called for every input of a layer, and for its output.
  std::function<void(LayerId, const at::Tensor& x, const at::Tensor& y)> on_linear;
  std::function<void(PortId, const at::Tensor& x)> on_tap;
  std::function<void(RegionId, const at::Tensor& x)> on_region;

  at::Tensor linear(LayerId, const at::Tensor& x) override;
  at::Tensor tap(PortId, const at::Tensor& x) override;
  void region_input(RegionId, const at::Tensor& x) override;
  at::Tensor param(std::string_view name) override;
  at::Tensor rows(std::string_view name, const at::Tensor& ids) override;
  bool all_experts() const override { return false; }
  KeyValueCache* cache() override { return keys_and_values; }
  at::ScalarType dtype() const override { return at::kFloat; }
  at::Device device() const override { return at::kCPU; }

 private:
  Lookup globals_;
  const BlockPlan* block_ = nullptr;
  const BlockTensors* tensors_ = nullptr;
};

/// Divides what feeds the edge's port by s and multiplies what reads it: the function stays.
Status fold_edge(const BlockPlan&, const ScaleEdge&, const at::Tensor& s, BlockTensors&);
/// The consumers' columns of a producer's s: grouped heads repeated. [features]
at::Tensor columns_of(const ScaleEdge&, const at::Tensor& s);

/// Calibration batches of a block, and tokens of each.
constexpr int64_t kLabInputs = 3, kLabTokens = 48;

/// A small transformer block with random weights of uneven channels, and its inputs: attention (grouped heads) and a gated
/// feed-forward part. `experts`: two experts instead, of which no token reaches the second.
struct LabBlock {
  BlockPlan plan;
  BlockTensors tensors;
  std::vector<at::Tensor> inputs;  ///< [tokens, features] each

  static LabBlock make(uint64_t seed, bool experts = false, int64_t index = 0);
  /// The block's output for one input.
  at::Tensor forward(const at::Tensor& x, LabExec&) const;
  at::Tensor region(RegionId, const at::Tensor& x, LabExec&) const;
  /// An Exec over these tensors.
  LabExec exec() const;
  /// Outputs for all inputs, one after the other.
  at::Tensor outputs() const;
};

/// Faults that a host may have.
struct Faults {
  enum class Loss : uint8_t { kNone, kStatus, kThrow };
  Loss loss = Loss::kNone;
  bool no_statistics = false;  ///< nothing that was asked for is there
};

/// What an algorithm did to a block.
struct LabResult {
  std::map<LayerId, Solved> solved;
  BlockTensors tensors;           ///< after transform(), before rounding
  bool function_changed = false;  ///< a weight was set
  int losses = 0;                 ///< calls of loss()
};

/// How a block is worked on.
struct LabJob {
  Scheme scheme;         ///< of every layer
  bool reverse = false;  ///< solve the last layer first
  bool strided = false;  ///< weights are handed out as views with strides
  bool solve = true;
  Faults faults;
};

/// Observations, statistics, transform() and solve() of one algorithm on one block. Every call is guarded as in a run.
Result<LabResult> work(Algorithm&, const LabBlock&, const LabJob&);

/// The weight [out, in] fp32 that engines would compute with.
at::Tensor dense(const Solved&);

/// Bit-equal; undefined equals undefined.
bool same(const at::Tensor& a, const at::Tensor& b);
/// Bit-equal, NaN equal to NaN.
bool same(const Solved& a, const Solved& b);
/// ‖a - b‖ / ‖b‖
double relative_error(const at::Tensor& a, const at::Tensor& b);

}  // namespace slim::conformance
