#pragma once
#include <string>
#include <vector>

#include "common/models/moe.hpp"

namespace slim::model {

/// A decoder whose experts lie packed in two tensors a layer, "mlp.experts.gate_up_proj" and
/// "mlp.experts.down_proj", in either of two orientations: [experts, in, out], as published, or
/// [experts, out, in], as transformers has them in memory. Their shapes tell which: hidden size H and expert
/// width I make [E, H, 2I] and [E, I, H], or [E, 2I, H] and [E, H, I]; where one of the two tensors is square,
/// the other is not. Checkpoints with a tensor per expert and layer are read too.
class PackedMoeDecoder final : public MoeDecoder {
 public:
  using MoeDecoder::MoeDecoder;

 private:
  std::vector<LayerId> plan_expert(BlockBuilder&, const std::string& prefix, int32_t expert, const MoeLayer&,
                                   PortId input, const std::string& down_port) const override;
};

}  // namespace slim::model
