#include "common/models/multimodal_adapter.hpp"

#include <ATen/ATen.h>

namespace slim::model {

Result<Carry> MultimodalAdapter::begin(std::span<const Sample> samples, Exec& exec) {
  SLIM_ASSIGN(auto batch, collate(samples, tokens_));
  Carry carry{{"input_ids", batch.input_ids},
              {"sequence_lengths", batch.lengths},
              {"positions", batch.positions},
              {"next_position", batch.next_position},
              {"visual_rows", batch.visual_rows}};
  vision_->begin(batch, exec, carry);
  return carry;
}

Status MultimodalAdapter::enter(std::string_view stage, Exec& exec, Carry& carry) {
  if (stage != "language") return {};
  auto embedded = decoder_->embed(exec, carry.at("input_ids"));
  const auto rows = carry.at("visual_rows").to(embedded.device());
  carry["hidden"] = embedded.index_copy(0, rows, carry.at("hidden").to(embedded.scalar_type()));
  carry["lengths"] = carry.at("sequence_lengths");
  decoder_->set_positions(carry, carry.at("positions"), exec);
  for (const char* key : {"input_ids", "sequence_lengths", "positions"}) carry.erase(key);
  return {};
}

Status MultimodalAdapter::forward(const BlockPlan& block, Exec& exec, Carry& carry) {
  if (block.stage == "vision") {
    vision_->forward(block, exec, carry);
  } else {
    decoder_->forward(block, exec, carry);
  }
  return {};
}

Result<at::Tensor> MultimodalAdapter::forward_region(const BlockPlan& block, RegionId region, Exec& exec,
                                                     const Carry& carry, const at::Tensor& x) {
  if (block.stage == "vision") return vision_->region(block, region, exec, carry, x);
  return decoder_->region(block, region, exec, carry, x);
}

Result<Carry> MultimodalAdapter::next(const Carry& previous, const at::Tensor& token_ids, Exec& exec) {
  return decoder_->next(previous, token_ids, exec);
}

}  // namespace slim::model
