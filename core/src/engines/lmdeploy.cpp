#include "engines/engine_rules.h"

namespace slim::engines {

/// The rules of its TurboMind engine, which serves weights in 4 bits.
void check_lmdeploy(const ServedCheckpoint& served, int64_t, ProblemList& problems) {
  if (served.format_id == "ascend") return problems.add("reads no checkpoints of format ascend");
  check_fused_groups(served, problems);
  check_experts(served, problems);
  const bool gptq = served.format_id.starts_with("gptq"), awq = served.format_id == "awq";
  for_quantized(served, [&](const BlockPlan&, const Layer& layer, const Scheme& scheme) {
    if (!scheme.weight || scheme.weight->type != NumberType::kInt || scheme.input) return;
    const QuantArgs& weight = *scheme.weight;
    const int64_t group = weight.granularity == Granularity::kGroup ? weight.group_size : -1;
    if (weight.bits != 4)
      return problems.add(layer.name,
                          "has no kernel for weights of " + std::to_string(weight.bits) + " bits");
    if (gptq && !weight.symmetric) return problems.add(layer.name, "reads symmetric GPTQ weights only");
    if (group == 128 || (group == 32 && !gptq && !awq)) return;
    problems.add(layer.name, gptq || awq ? "takes groups of 128 of format " + served.format_id
                                         : "takes groups of 32 and 128 of compressed-tensors");
  });
}

}  // namespace slim::engines
