#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>

#include "common/files/json_config.hpp"
#include "common/models/multimodal.hpp"
#include "slim/adapter.hpp"

/// What the vision towers of the Qwen-VL families share: patches by a convolution, attention with axial rotary
/// positions over a fused qkv layer.
namespace slim::model {

/// A vision tower inside a MultimodalAdapter: the blocks of the stage "vision". Const and thread-compatible.
/// At the end the carry's "hidden" is [tokens, text features], in the order of MultimodalBatch::visual_rows.
class VisionStage {
 public:
  virtual ~VisionStage() = default;
  /// "hidden" and what else the blocks need.
  virtual void begin(const MultimodalBatch&, Exec&, Carry&) const = 0;
  virtual void forward(const BlockPlan&, Exec&, Carry&) const = 0;
  virtual at::Tensor region(const BlockPlan&, RegionId, Exec&, const Carry&, const at::Tensor& x) const = 0;
};

/// The size of patches.
struct PatchShape {
  int64_t channels = 3, temporal = 2, side = 14;
  int64_t features() const { return channels * temporal * side * side; }
};
/// Reads in_channels, temporal_patch_size and patch_size. Errors are kept in the JsonConfig.
PatchShape read_patch_shape(const JsonConfig&, int64_t default_side);

/// pixels [patches, features] -> [patches, hidden]; weight [hidden, channels, temporal, side, side], an empty
/// `bias` name: none.
at::Tensor embed_patches(Exec&, const at::Tensor& pixels, const PatchShape&, const std::string& weight,
                         const std::string& bias);

/// Attention inside each of the stretches of `lengths` patches: layers `prefix + "qkv"` (queries, keys and
/// values one after the other) and `prefix + "proj"`. x [patches, features], cos and sin of the carry
/// [patches, features / heads].
at::Tensor vision_attention(const BlockPlan&, const std::string& prefix, Exec&, const Carry&,
                            const at::Tensor& x, int64_t heads, std::span<const int64_t> lengths);

}  // namespace slim::model
