#pragma once
#include <memory>
#include <span>
#include <string_view>

#include "common/models/decoder.hpp"
#include "common/models/multimodal.hpp"
#include "common/models/vision_tower.hpp"
#include "slim/adapter.hpp"

namespace slim::model {

/// A model whose vision tower's features take the place of image and video tokens of a decoder, with positions
/// on three axes. An architecture derives from it, and its plan() makes the parts.
///
/// Carry between the stages: "input_ids", "sequence_lengths", "positions" [3, tokens], "next_position", and
/// "visual_rows" (until the end), beside what the vision stage keeps.
class MultimodalAdapter : public ModelAdapter {
 public:
  Result<Carry> begin(std::span<const Sample> samples, Exec&) override;
  Status enter(std::string_view stage, Exec&, Carry&) override;
  Status forward(const BlockPlan&, Exec&, Carry&) override;
  Result<at::Tensor> forward_region(const BlockPlan&, RegionId, Exec&, const Carry&,
                                    const at::Tensor& x) override;
  Result<Carry> next(const Carry& previous, const at::Tensor& token_ids, Exec&) override;

 protected:
  std::unique_ptr<VisionStage> vision_;
  std::unique_ptr<Decoder> decoder_;
  MultimodalTokens tokens_;
};

}  // namespace slim::model
