#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/layers/attention.hpp"
#include "common/layers/rotary.hpp"
#include "common/layers/transformer.hpp"
#include "common/models/transformer_plan.hpp"
#include "slim/adapter.hpp"

namespace slim::model {

/// Shape and dialect of a pre-norm decoder with rotary attention and a gated feed-forward part.
struct DecoderConfig {
  std::string prefix = "model.";  ///< of embed_tokens, layers and norm: "model.language_model."
  std::string head = "lm_head";   ///< module name of the output layer
  std::string embedding = "model.embed_tokens.weight";  ///< tensor name
  bool has_head = true;                                 ///< false: a model that embeds, ranks or rewards
  bool head_copied = false;                             ///< a tied head is stored a second time
  int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  double epsilon = 1e-6;
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  /// RMS norms of queries and keys over head_dim, before or after the rotation.
  enum class HeadNorm : uint8_t { kNone, kBeforeRotary, kAfterRotary };
  HeadNorm head_norm = HeadNorm::kNone;
  std::string query_norm = "q_norm", key_norm = "k_norm";
  std::string activation = "silu";
  bool tied = false;  ///< the head uses the embedding's tensor
  std::vector<int64_t>
      windows;  ///< by layer: a token sees itself and so many less one before it, 0: all; empty: all layers see all
  RopeConfig rope;
};

/// Defaults for keys that config.json leaves out, as transformers has them for a model type.
struct DecoderDefaults {
  int64_t hidden = 4096, intermediate = 22016, layers = 32, heads = 32, vocabulary = 151936;
  int64_t kv_heads = 0;  ///< 0: as many as heads
  int64_t head_dim = 0;  ///< 0: hidden / heads
  double epsilon = 1e-6, theta = 10000;
};
/// Reads the keys that decoders share (sizes, rms_norm_eps, hidden_act, attention_bias, rope); prefix, head
/// norms, tying and further biases are the caller's. Errors, also sizes that do not fit together, are kept in
/// the JsonConfig.
DecoderConfig read_decoder(const JsonConfig&, const DecoderDefaults&);

/// Reads the windows of the layers: "sliding_window" where `enabled`, in the layers that "layer_types" calls sliding_attention or, without
/// it, that `slides` names. Errors, also layers that slide without a window, are kept in the JsonConfig.
void read_windows(const JsonConfig&, bool enabled, const std::function<bool(int64_t)>& slides,
                  DecoderConfig&);

/// Finds the names under which a checkpoint stores the decoder: the first of `prefixes` with which a norm of the first layer is there; the
/// embedding, for which a tied model may store its head alone; and whether it has a head.
void find_names(const std::map<std::string, TensorSpec>& tensors, const std::vector<std::string>& prefixes,
                DecoderConfig&);

/// Where the three matrices of a gated feed-forward part lie, if they are slices of other tensors.
struct GatedWeights {
  WeightRef gate, up, down;
};

/// The blocks of a language model: stages "language" (one block per layer) and "head". An architecture
/// derives from it to change the feed-forward part. Const and thread-compatible.
///
/// Carry: "hidden" [tokens, hidden], "lengths" int64 [sequences], "cos" and "sin" [tokens, head_dim] in the
/// compute dtype,
/// "next_position" int64 [sequences] (generation), and in the head stage "logit_rows" (optional) and "logits"
/// [n, vocabulary] fp32. Blocks: ports attention_input, attention_output_input, mlp_input, down_input;
/// regions "attention" and "mlp", which take the residual stream and start with their norm, so that their
/// inputs stay valid when a scale is folded into it.
class Decoder {
 public:
  Decoder() = default;
  explicit Decoder(DecoderConfig);
  virtual ~Decoder() = default;

  const DecoderConfig& config() const { return config_; }
  /// Adds the embedding and the blocks of both stages.
  void plan(PlanBuilder&) const;
  /// int64 [n] -> [n, hidden].
  at::Tensor embed(Exec&, const at::Tensor& ids) const;
  /// Writes cos and sin for positions int64 [tokens] or [3, tokens] into the carry.
  void set_positions(Carry&, const at::Tensor& positions, Exec&) const;
  /// The carry at the entry of the language stage for plain text: "hidden", "lengths", tables,
  /// "next_position".
  Carry start(const at::Tensor& ids, const at::Tensor& lengths, Exec&) const;
  /// ModelAdapter::next: one more token per sequence, at the carry's "next_position".
  Carry next(const Carry& previous, const at::Tensor& token_ids, Exec&) const;
  /// A block of the stage "language" or "head".
  void forward(const BlockPlan&, Exec&, Carry&) const;
  at::Tensor region(const BlockPlan&, RegionId, Exec&, const Carry&, const at::Tensor& x) const;

 protected:
  /// The layers of the feed-forward part, its port mlp_input and its region "mlp"; `norm` is the module that
  /// feeds it.
  virtual void plan_mlp(BlockBuilder&, int64_t layer, const std::string& norm) const;
  /// The feed-forward part for normed x [tokens, hidden].
  virtual at::Tensor mlp(const BlockPlan&, Exec&, const at::Tensor& x) const;
  /// down(act(gate(x)) * up(x)) of the layers `prefix + "gate_proj"`, ... : also a shared or a single expert.
  at::Tensor gated(const BlockPlan&, const std::string& prefix, Exec&, const at::Tensor& x) const;
  /// Adds those three layers with ports for the input (given) and down_input, the group gate_up and the edge
  /// up -> down. Without `weights` each layer has a tensor of its own; otherwise the caller claims them.
  /// Returns gate, up, down.
  std::vector<LayerId> plan_gated(BlockBuilder&, const std::string& prefix, int64_t intermediate,
                                  PortId input, const std::string& down_port, int32_t expert = -1,
                                  const GatedWeights* weights = nullptr) const;

 private:
  void plan_attention(BlockBuilder&) const;
  at::Tensor attention(const BlockPlan&, Exec&, const Carry&, const at::Tensor& x) const;
  /// Which earlier tokens the tokens of a block of the language stage see.
  Sight sight(const BlockPlan&) const;
  at::Tensor norm(const BlockPlan&, const char* name, Exec&, const at::Tensor& x) const;
  void head(const BlockPlan&, Exec&, Carry&) const;

  DecoderConfig config_;
  Activation activation_ = nullptr;
  Rotary rotary_;
};

/// 0, 1, 2, ... for every sequence: int64 [tokens].
at::Tensor text_positions(const at::Tensor& lengths);

}  // namespace slim::model
