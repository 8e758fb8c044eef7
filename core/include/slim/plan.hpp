#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

/// Plain data that an adapter makes from config.json and tensor shapes alone: no tensor bytes, no torch types.
namespace slim {

using LayerId = int32_t;   ///< dense index into BlockPlan::layers
using PortId = int32_t;    ///< dense index into BlockPlan::ports
using RegionId = int32_t;  ///< dense index into BlockPlan::regions

/// What a layer does in its block.
enum class Role : uint8_t { kQuery, kKey, kValue, kAttentionOutput, kGate, kUp, kDown, kRouter, kHead, kOther };

/// Where a logical [out, in] matrix lies in the checkpoint.
struct WeightRef {
  std::string tensor;            ///< its name in the checkpoint
  std::optional<int64_t> index;  ///< entry of a packed tensor's first dimension [E, ., .]
  bool transposed = false;       ///< stored as [in, out]
  int64_t row_begin = 0;         ///< rows [row_begin, row_begin + out) of the (un-transposed) matrix: fused qkv, gate_up
};

/// A linear layer y = x Wᵀ + b, W [out, in].
struct Layer {
  LayerId id = 0;    ///< its place in BlockPlan::layers
  std::string name;  ///< module name as engines see it: "model.layers.0.self_attn.q_proj"; outputs are `name + ".weight..."`
  Role role = Role::kOther;  ///< for algorithms that treat some layers otherwise
  PortId input = 0;          ///< the activation that it reads
  WeightRef weight;          ///< where its matrix lies
  std::string bias;  ///< tensor name, empty without one
  int64_t out = 0;   ///< output channels
  int64_t in = 0;    ///< input channels
  int32_t expert = -1;  ///< -1: dense
  bool tied = false;    ///< shares its tensor with the embedding: never replaced
};

/// One distinct activation inside a block; q/k/v read the same port.
struct Port {
  PortId id = 0;     ///< its place in BlockPlan::ports
  std::string name;  ///< "attention_input", "mlp_input", "down_input", "expert 3 down_input"
  int64_t features = 0;  ///< channels: of every layer that reads it
  PortId parent = -1;   ///< expert ports: the port whose statistics stand in for too few tokens
  bool pooled = false;  ///< fed by no layer: its statistics are the sum of its children's
};

/// A sub-forward that can be run again alone (ModelAdapter::forward_region).
struct Region {
  RegionId id = 0;   ///< its place in BlockPlan::regions
  std::string name;  ///< "attention", "mlp"
};

/// Layers that a serving engine merges into one: they need one scheme, and one scale if it is per tensor.
struct FusedGroup {
  std::string name;             ///< "qkv", "gate_up"
  std::vector<LayerId> layers;  ///< at least two
};

/// How what feeds a port takes up 1/s.
enum class Fold : uint8_t {
  kNorm,        ///< a norm's weight (and bias): w / s
  kNormPlusOne, ///< a norm that multiplies by (1 + w)
  kLinearRows   ///< a linear's output rows (and bias): W / s
};

/// A place where a per-channel scale can be moved from activations into weights without changing the function:
/// the producer's outputs are divided by s, the consumers' input columns multiplied by s.
struct ScaleEdge {
  PortId port = 0;          ///< the activation that is divided
  Fold fold = Fold::kNorm;  ///< what takes up 1/s
  std::string norm_weight;  ///< tensor name (kNorm, kNormPlusOne)
  std::string norm_bias;    ///< tensor name, or empty
  std::vector<LayerId> producers;      ///< kLinearRows: usually one layer (v_proj, up_proj)
  std::vector<LayerId> consumers;      ///< every layer that reads the port, quantized or not
  /// Grouped-query attention: each producer head of `head_dim` rows is read by `repeat` consecutive consumer heads,
  /// so s has port.features / repeat entries.
  int64_t repeat = 1;
  int64_t head_dim = 0;  ///< rows of a head; 0 when repeat is 1
  RegionId region = -1;  ///< the region whose output peers compare; -1: the consumers themselves
  std::string name;      ///< "input_layernorm -> q,k,v", for messages
};

/// An attention whose keys and values engines cache: what quantized caches get their scales from.
struct CacheSite {
  std::string name;  ///< module name of the attention: "model.layers.0.self_attn"
  PortId key = 0;    ///< as `value`
  PortId value = 0;  ///< fed with Exec::tap: keys as they are cached (rotated), values; [tokens, kv_heads * head_dim]
  LayerId value_layer = 0;    ///< whose output rows the values are: they follow a scale that is folded into it
};

/// The experts of a block.
struct ExpertSet {
  LayerId router = -1;  ///< the layer that chooses; -1: it is no layer of the plan
  std::vector<std::vector<LayerId>> experts;  ///< [expert][layer]
  int32_t top_k = 0;    ///< experts that each token is sent to
};

/// The unit of the run: its weights are in memory together, and nothing else's.
struct BlockPlan {
  int32_t index = 0;  ///< position in ModelPlan::blocks
  std::string name;   ///< "model.language_model.layers.3"
  std::string stage;  ///< "vision", "language", "head"
  std::vector<Port> ports;          ///< by PortId
  std::vector<Layer> layers;        ///< by LayerId
  std::vector<std::string> params;  ///< the block's other tensors: norms, position tables
  std::vector<Region> regions;      ///< by RegionId
  std::vector<FusedGroup> fused;    ///< disjoint
  std::vector<ScaleEdge> edges;     ///< in the order in which algorithms should fold them
  std::vector<CacheSite> caches;    ///< its attentions
  std::optional<ExpertSet> moe;     ///< of a mixture of experts
};

/// A tensor that is not written to the output.
struct LeftOut {
  std::string tensor;   ///< its name
  std::string copy_of;  ///< the tensor that engines use in its place (a tied head that is stored twice); empty: they compute it themselves
};

/// Every tensor of the checkpoint is named exactly once: by a layer (weight, bias), a block's params, globals, beside or left_out.
/// A packed tensor counts once however many layers are slices of it; a tied head names no tensor of its own.
struct ModelPlan {
  std::string family;  ///< "qwen3_vl", as config.json's model_type
  std::vector<BlockPlan> blocks;  ///< in the order in which they run; blocks of one stage are contiguous
  std::vector<std::string> globals;  ///< tensors outside any block: embeddings, patch projection, unused heads
  /// Tensors that the model as it is planned does not compute with (multi-token prediction, value heads, other towers): copied as they are.
  std::vector<std::string> beside;
  std::vector<LeftOut> left_out;  ///< rotary tables, second copies
  /// Module names that stay in float unless the user asks: lm_head, vision tower, routers ("re:..." as engines match them).
  std::vector<std::string> default_ignore;
};

}  // namespace slim
