#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/models/decoder.hpp"

namespace slim::model {

/// The feed-forward part of one decoder layer.
struct MoeLayer {
  int64_t experts = 0;       ///< 0: the layer is dense
  int64_t top_k = 1;         ///< experts that compute each token
  int64_t intermediate = 0;  ///< of one expert
  int64_t shared = 0;        ///< width of the expert that computes every token
};
struct MoeConfig {
  std::vector<MoeLayer> layers;  ///< one per decoder layer
  std::string router = "gate";   ///< module under "mlp."
  std::string shared_expert;     ///< module under "mlp.", empty: there is none
  std::string shared_gate;       ///< module under "mlp.", whose sigmoid weighs the shared expert; empty: none
  bool router_in_float = false;  ///< fp32 whatever the compute dtype
  bool normalize = true;         ///< the weights of a token's experts add up to 1
};

/// The keys of Qwen's mixtures: num_experts (num_local_experts in files of transformers 5), num_experts_per_tok,
/// moe_intermediate_size, norm_topk_prob; every decoder_sparse_step-th layer is one, but for mlp_only_layers.
/// `defaults` stand in for keys left out; without them the first three have to be there. Errors are kept in the
/// JsonConfig.
MoeConfig read_moe(const JsonConfig&, int64_t layers, bool default_normalize,
                   const std::optional<MoeLayer>& defaults = {});

/// Which experts compute each token, and how much each adds.
struct Routing {
  at::Tensor experts;  ///< int64 [tokens, top_k]
  at::Tensor weights;  ///< [tokens, top_k], the router's dtype
};
/// Softmax over all experts in fp32, then the largest top_k; `normalize` divides by their sum.
Routing route(const at::Tensor& router_logits, int64_t top_k, bool normalize);

/// A decoder whose feed-forward parts are mixtures of experts. Const and thread-compatible.
///
/// Blocks: port mlp_input is read by the router and the shared expert, and is the parent of "expert E input",
/// which sees only the tokens routed to expert E. "expert E down_input" has the pooled parent
/// "experts_down_input". One edge leads from the norm to everything that reads mlp_input or an expert's input;
/// ExpertSet lists gate, up and down of each expert. With Exec::all_experts() every expert computes every
/// token, and the router's weights mix the same outputs as ever.
class MoeDecoder : public Decoder {
 public:
  /// config.layers == moe.layers.size().
  MoeDecoder(DecoderConfig config, MoeConfig moe) : Decoder(std::move(config)), moe_(std::move(moe)) {}

 protected:
  void plan_mlp(BlockBuilder&, int64_t layer, const std::string& norm) const override;
  at::Tensor mlp(const BlockPlan&, Exec&, const at::Tensor& x) const override;
  /// The layers `prefix + "gate_proj"`, ... of one expert, with a port named `down_port`: gate, up, down. Here
  /// each has a tensor of its own; an architecture that packs its experts overrides this, keeping the names, the
  /// group and the edge of plan_gated().
  virtual std::vector<LayerId> plan_expert(BlockBuilder&, const std::string& prefix, int32_t expert,
                                           const MoeLayer&, PortId input, const std::string& down_port) const;

 private:
  at::Tensor experts(const BlockPlan&, Exec&, const at::Tensor& x) const;

  MoeConfig moe_;
};

}  // namespace slim::model
