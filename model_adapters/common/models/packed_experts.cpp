#include "common/models/packed_experts.hpp"

namespace slim::model {
namespace {

using Shape = std::vector<int64_t>;

/// The packed tensors of one layer.
struct Packed {
  std::string gate_up, down;
  bool transposed = true;  ///< [experts, in, out]

  /// Claims both, once for all experts of a layer.
  void claim(PlanBuilder& plan, const MoeLayer& moe, int64_t hidden) const {
    const int64_t both = 2 * moe.intermediate;
    plan.claim(gate_up, transposed ? Shape{moe.experts, hidden, both} : Shape{moe.experts, both, hidden});
    plan.claim(down, transposed ? Shape{moe.experts, moe.intermediate, hidden}
                                : Shape{moe.experts, hidden, moe.intermediate});
  }
  WeightRef slice(const std::string& tensor, int32_t expert, int64_t row_begin) const {
    WeightRef weight;
    weight.tensor = tensor;
    weight.index = expert;
    weight.transposed = transposed;
    weight.row_begin = row_begin;
    return weight;
  }
};

Packed find_packed(const PlanBuilder& plan, const std::string& experts, const MoeLayer& moe, int64_t hidden) {
  Packed result{experts + "gate_up_proj", experts + "down_proj"};
  const auto has_shape = [&](const std::string& tensor, const Shape& shape) {
    const TensorSpec* spec = plan.find(tensor);
    return spec && spec->shape == shape;
  };
  const int64_t width = moe.intermediate;
  result.transposed = hidden != 2 * width ? !has_shape(result.gate_up, {moe.experts, 2 * width, hidden})
                                          : !has_shape(result.down, {moe.experts, hidden, width});
  return result;
}

}  // namespace

std::vector<LayerId> PackedMoeDecoder::plan_expert(BlockBuilder& block, const std::string& prefix,
                                                   int32_t expert, const MoeLayer& moe, PortId input,
                                                   const std::string& down_port) const {
  auto& plan = block.owner();
  const auto packed = find_packed(plan, block.plan().name + ".mlp.experts.", moe, config().hidden);
  if (!plan.has(packed.gate_up) && !plan.has(packed.down)) {
    return MoeDecoder::plan_expert(block, prefix, expert, moe, input, down_port);
  }
  if (expert == 0) packed.claim(plan, moe, config().hidden);
  GatedWeights weights;
  weights.gate = packed.slice(packed.gate_up, expert, 0);
  weights.up = packed.slice(packed.gate_up, expert, moe.intermediate);
  weights.down = packed.slice(packed.down, expert, 0);
  return plan_gated(block, prefix, moe.intermediate, input, down_port, expert, &weights);
}

}  // namespace slim::model
