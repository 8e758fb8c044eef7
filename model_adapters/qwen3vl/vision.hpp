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

namespace slim::qwen3vl {

struct VisionConfig {
  std::string prefix = "model.visual.";  ///< of every tensor of the tower
  int64_t depth = 0, hidden = 0, intermediate = 0, heads = 0, out_hidden = 0;
  model::PatchShape patch;
  int64_t merge = 2;                ///< patches per token, along height and along width
  int64_t positions = 0, side = 0;  ///< learned position table: side x side
  double theta = 10000;
  std::vector<int64_t> deepstack;  ///< blocks whose output also goes, merged, into the first language layers
  std::string activation;
  int64_t merged() const { return hidden * merge * merge; }
};
/// Errors are kept in the JsonConfig.
VisionConfig read_vision(const model::JsonConfig&);

/// The vision tower: stage "vision", blocks PREFIXblocks.N and at last PREFIXmerger.
/// Carry: "hidden" [patches, hidden], at the end [tokens, out_hidden]; "lengths" patches of each frame; "cos"
/// and "sin" [patches, head_dim] fp32; "deepstack_K" [tokens, out_hidden], what language layer K adds.
class VisionTower final : public model::VisionStage {
 public:
  explicit VisionTower(VisionConfig);
  void plan(model::PlanBuilder&) const;
  void begin(const model::MultimodalBatch&, Exec&, Carry&) const override;
  void forward(const BlockPlan&, Exec&, Carry&) const override;
  at::Tensor region(const BlockPlan&, RegionId, Exec&, const Carry&, const at::Tensor& x) const override;

 private:
  void plan_block(model::BlockBuilder&) const;
  void plan_merger(model::BlockBuilder&, const std::string& name, bool norm_merged) const;
  at::Tensor merger(const BlockPlan&, const std::string& name, bool norm_merged, Exec&,
                    const at::Tensor& x) const;
  at::Tensor position_embedding(const at::Tensor& grid_thw, const at::Tensor& patch_positions, Exec&) const;

  VisionConfig config_;
  model::Activation activation_ = nullptr;
};

/// "deepstack_2"
std::string deepstack_key(int64_t language_layer);

}  // namespace slim::qwen3vl
