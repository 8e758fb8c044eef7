#include <algorithm>

#include "engines/engine_rules.h"

namespace slim::engines {
namespace {

/// CUTLASS, for weights whose inputs are quantized too, takes multiples of this size.
constexpr int64_t kScaledMultiple = 16;
/// Groups that Marlin has kernels for; whole rows besides.
constexpr int64_t kMarlinGroups[] = {32, 64, 128};

/// How a layer is cut for several devices.
enum class Cut : uint8_t { kNone, kOutputs, kInputs };

Cut cut_of(Role role) {
  switch (role) {
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
    case Role::kGate:
    case Role::kUp:
      return Cut::kOutputs;
    case Role::kAttentionOutput:
    case Role::kDown:
      return Cut::kInputs;
    default:
      return Cut::kNone;
  }
}

/// The part of a layer that one device has.
struct Shard {
  int64_t out = 0, in = 0;
  int64_t merged = 0;  ///< outputs with those of the layers that are merged into it
  std::string text() const { return "[" + std::to_string(out) + ", " + std::to_string(in) + "] on a device"; }
};

class VllmRules {
 public:
  VllmRules(const ServedCheckpoint& served, int64_t devices, ProblemList& problems)
      : served_(served), devices_(devices), problems_(problems) {}

  void check() {
    if (served_.format_id == "ascend") return problems_.add("reads no checkpoints of format ascend");
    check_heads();
    check_fused_groups(served_, problems_);
    check_experts(served_, problems_);
    if (served_.desc_act) problems_.add("reads no GPTQ weights with desc_act");
    for_quantized(served_, [&](const BlockPlan& block, const Layer& layer, const Scheme& scheme) {
      if (scheme.weight) check_layer(block, layer, scheme);
    });
  }

 private:
  bool gptq() const { return served_.format_id.starts_with("gptq"); }

  /// Queries are dealt out; keys and values are dealt out, or copied to devices that share one.
  void check_heads() {
    if (served_.heads > 0 && served_.heads % devices_ != 0)
      problems_.add("cannot deal out " + std::to_string(served_.heads) + " attention heads to " +
                    std::to_string(devices_) + " devices");
    const int64_t kv = served_.key_value_heads;
    const bool shared = kv > 0 && (kv >= devices_ ? kv % devices_ != 0 : devices_ % kv != 0);
    if (shared)
      problems_.add("cannot deal out " + std::to_string(kv) + " heads of keys and values to " +
                    std::to_string(devices_) + " devices");
  }

  /// Kernels see merged layers as one: all outputs for the first of them, none for the others.
  static int64_t merged_outputs(const BlockPlan& block, const Layer& layer) {
    for (const FusedGroup& group : block.fused) {
      if (std::find(group.layers.begin(), group.layers.end(), layer.id) == group.layers.end()) continue;
      if (group.layers.front() != layer.id) return 0;
      int64_t sum = 0;
      for (const LayerId id : group.layers) sum += block.layers[id].out;
      return sum;
    }
    return layer.out;
  }

  /// True for keys and values of which each device has one head, with others that have the same.
  bool copied(const BlockPlan& block, const Layer& layer) const {
    const bool key_value = layer.role == Role::kKey || layer.role == Role::kValue;
    return key_value && block.stage != "vision" && served_.key_value_heads > 0 &&
           devices_ > served_.key_value_heads && layer.out % served_.key_value_heads == 0;
  }

  void check_layer(const BlockPlan& block, const Layer& layer, const Scheme& scheme) {
    Shard shard{layer.out, layer.in, merged_outputs(block, layer)};
    const Cut cut = cut_of(layer.role);
    if (copied(block, layer)) {
      shard.out = layer.out / served_.key_value_heads;
    } else if (cut != Cut::kNone) {
      int64_t& size = cut == Cut::kOutputs ? shard.out : shard.in;
      if (size % devices_ != 0) {
        return problems_.add(layer.name, "cannot cut its " + std::to_string(size) +
                                             (cut == Cut::kOutputs ? " outputs for " : " inputs for ") +
                                             std::to_string(devices_) + " devices");
      }
      size /= devices_;
    }
    if (cut == Cut::kOutputs) shard.merged /= devices_;
    check_units(layer, *scheme.weight, shard);
    if (scheme.input || scheme.weight->type == NumberType::kFloat)
      check_scaled(layer, shard);
    else
      check_integers(layer, *scheme.weight);
  }

  /// What shares a scale must lie on one device.
  void check_units(const Layer& layer, const QuantArgs& weight, const Shard& shard) {
    if (weight.granularity == Granularity::kGroup && shard.in % weight.group_size != 0)
      problems_.add(layer.name,
                    "cuts groups of " + std::to_string(weight.group_size) + ": it has " + shard.text());
    // Of dense layers on one device, the last block may be a part of one.
    if (weight.granularity == Granularity::kBlock && (devices_ > 1 || layer.expert >= 0) &&
        (shard.out % weight.block_rows != 0 || shard.in % weight.block_columns != 0)) {
      problems_.add(layer.name, "cuts blocks of " + std::to_string(weight.block_rows) + "x" +
                                    std::to_string(weight.block_columns) + ": it has " + shard.text());
    }
  }

  /// Integer weights alone. Widths that the kernel's tiles do not divide are filled up with zeros.
  void check_integers(const Layer& layer, const QuantArgs& weight) {
    const std::string bits = std::to_string(weight.bits);
    if (gptq() && weight.bits != 4 && weight.bits != 8)
      return problems_.add(layer.name, "reads GPTQ weights of 4 and 8 bits, not of " + bits);
    if (gptq() && !weight.symmetric) return problems_.add(layer.name, "reads symmetric GPTQ weights only");
    if (weight.bits == 8 && !weight.symmetric)
      return problems_.add(layer.name, "has no kernel for 8-bit weights with zero points");
    const bool grouped = weight.granularity == Granularity::kGroup;
    const bool known = std::ranges::find(kMarlinGroups, weight.group_size) != std::end(kMarlinGroups);
    if (grouped && !known && served_.format_id != "awq" && (weight.bits == 4 || weight.bits == 8)) {
      problems_.add(layer.name, "has no kernel for groups of " + std::to_string(weight.group_size) +
                                    "; it has them for 32, 64, 128 and whole rows");
    }
  }

  void check_scaled(const Layer& layer, const Shard& shard) {
    if (shard.merged % kScaledMultiple == 0 && shard.in % kScaledMultiple == 0) return;
    problems_.add(layer.name, "needs multiples of " + std::to_string(kScaledMultiple) +
                                  " for its kernel: it has " + shard.text());
  }

  const ServedCheckpoint& served_;
  int64_t devices_;
  ProblemList& problems_;
};

}  // namespace

void check_vllm(const ServedCheckpoint& served, int64_t devices, ProblemList& problems) {
  VllmRules(served, devices, problems).check();
}

}  // namespace slim::engines
