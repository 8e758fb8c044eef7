#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/files/json_config.hpp"
#include "common/layers/transformer.hpp"
#include "common/models/multimodal.hpp"
#include "common/models/transformer_plan.hpp"
#include "common/models/vision_tower.hpp"
#include "slim/adapter.hpp"

namespace slim::qwen2_5_vl {

struct VisionConfig {
  std::string prefix = "visual.";  ///< of all tensors: "model.visual."
  /// Qwen2.5-VL: RMS norms and a gated feed-forward part. Qwen2-VL: layer norms, and mlp.fc1 and mlp.fc2.
  bool gated = true;
  int64_t depth = 0, hidden = 0, intermediate = 0, heads = 0, out_hidden = 0;
  model::PatchShape patch;
  int64_t merge = 2;   ///< patches per token, along height and along width
  int64_t window = 0;  ///< side of the windows of attention in tokens; 0: every block sees whole frames
  std::vector<int64_t> full_blocks;  ///< blocks that see whole frames in spite of windows
  int64_t tokens_per_second = 0;     ///< distance of a video's temporal positions; 0: they count up
  std::string activation;
  int64_t merged() const { return hidden * merge * merge; }
};
/// vision_config of a model_type, "qwen2_5_vl" or "qwen2_vl". Errors are kept in the JsonConfig.
VisionConfig read_vision(const model::JsonConfig&, const std::string& family);

/// The vision tower: stage "vision", blocks visual.blocks.N and at last visual.merger. Patches are put into the
/// order of the windows before the first block, and tokens back into that of the image after the last one.
/// Carry: "hidden" [patches, hidden], at the end [tokens, out_hidden]; "lengths" patches of each frame,
/// "window_lengths" of each window; "window_order" int64 [tokens], the token at each place; "cos" and "sin"
/// [patches, head_dim] fp32.
class VisionTower final : public model::VisionStage {
 public:
  explicit VisionTower(VisionConfig);
  void plan(model::PlanBuilder&) const;
  void begin(const model::MultimodalBatch&, Exec&, Carry&) const override;
  void forward(const BlockPlan&, Exec&, Carry&) const override;
  at::Tensor region(const BlockPlan&, RegionId, Exec&, const Carry&, const at::Tensor& x) const override;

 private:
  void plan_block(model::BlockBuilder&) const;
  void plan_mlp(model::BlockBuilder&) const;
  void plan_merger(model::BlockBuilder&) const;
  /// Adds the norm's tensors.
  void plan_norm(model::BlockBuilder&, const std::string& name) const;
  at::Tensor norm(Exec&, const std::string& name, const at::Tensor& x) const;
  at::Tensor mlp(const BlockPlan&, Exec&, const at::Tensor& x) const;
  at::Tensor merge(const BlockPlan&, Exec&, const at::Tensor& x) const;
  bool sees_whole_frames(const BlockPlan&) const;

  VisionConfig config_;
  model::Activation activation_ = nullptr;
};

/// Windows of side x side tokens over the frames of images (grid_thw in patches), row by row; those at the right
/// and lower edges are smaller.
struct Windows {
  std::vector<int64_t> order;    ///< the token at each place when windows follow one another
  std::vector<int64_t> lengths;  ///< tokens of each window
};
Windows make_windows(const at::Tensor& grid_thw, int64_t merge, int64_t side);

}  // namespace slim::qwen2_5_vl
