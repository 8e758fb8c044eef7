#include "engines/engine_rules.h"

namespace slim::engines {

/// transformers puts the experts of a block into one tensor as they are loaded: a mixture of schemes loads without a word and computes
/// other numbers, and zero points have no place.
void check_transformers(const ServedCheckpoint& served, int64_t, ProblemList& problems) {
  if (served.format_id == "ascend") return problems.add("reads no checkpoints of format ascend");
  check_experts(served, problems);
  for_quantized(served, [&](const BlockPlan&, const Layer& layer, const Scheme& scheme) {
    const bool zero_points = scheme.weight && !scheme.weight->symmetric;
    if (layer.expert >= 0 && zero_points && served.format_id == "compressed-tensors")
      problems.add(layer.name, "loads no experts with zero points");
  });
}

}  // namespace slim::engines
