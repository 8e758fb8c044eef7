#include "engines/engine_rules.h"

namespace slim::engines {

/// Its classes for checkpoints that msmodelslim's description says how to read.
void check_vllm_ascend(const ServedCheckpoint& served, int64_t, ProblemList& problems) {
  if (served.format_id != "ascend")
    return problems.add("is told of quantization by quant_model_description.json: use --format ascend");
  check_fused_groups(served, problems);
  check_experts(served, problems);
  for_quantized(served, [&](const BlockPlan&, const Layer& layer, const Scheme& scheme) {
    if (!scheme.weight) return;
    const QuantArgs& weight = *scheme.weight;
    const bool expert = layer.expert >= 0;
    if (expert && served.plan->family == "hunyuan_v1_moe")
      return problems.add(layer.name, "has no mapping of this family's experts");
    if (expert && scheme.input && !scheme.input->dynamic)
      return problems.add(
          layer.name,
          "has no class for experts with fixed scales of activations (W8A8): use a dynamic scheme");
    if (scheme.sparsity || scheme.name == "w8a8s") {
      if (served.dtype != at::kHalf)
        problems.add(layer.name,
                     "reads W8A8S of fp16 models only (deq_scale in I64): --output-dtype float16");
      return;
    }
    if (scheme.input) return;
    if (weight.bits == 4 && !expert) return problems.add(layer.name, "has no class for W4A16 linear layers");
    if (weight.bits == 8 && weight.granularity == Granularity::kGroup)
      problems.add(layer.name, "takes one scale a row of W8A16: --group-size -1");
  });
}

}  // namespace slim::engines
