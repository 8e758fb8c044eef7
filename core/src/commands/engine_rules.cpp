#include "commands/engine_rules.h"

#include <algorithm>

#include "util/nearest.h"
#include "util/strict_json.h"

namespace slim {
namespace {

/// Kernels of vLLM take multiples of these sizes: Marlin for integer weights alone, CUTLASS where inputs are quantized too.
constexpr int64_t kMarlinOut = 64, kMarlinIn = 128, kScaledMultiple = 16;
constexpr int64_t kMarlinGroups[] = {32, 64, 128};

/// How vLLM cuts a layer for several devices.
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
  VllmRules(const Model& model, int64_t devices) : model_(model), devices_(devices) {}

  Result<std::vector<std::string>> problems() {
    SLIM_ASSIGN(method_, quant_method());
    for (const BlockPlan& block : model_.plan.blocks) {
      for (const FusedGroup& group : block.fused) check_fused(block, group);
      for (const Layer& layer : block.layers) check_layer(layer, merged_outputs(block, layer));
    }
    std::vector<std::string> lines;
    for (const Problem& problem : problems_) {
      const std::string more =
          problem.layers > 1 ? " (and " + std::to_string(problem.layers - 1) + " more)" : "";
      lines.push_back(problem.first + more + ": vLLM " + problem.what);
    }
    return lines;
  }

 private:
  Result<std::string> quant_method() const {
    SLIM_ASSIGN(const std::string text, config_value(model_.weights->checkpoint(), "quantization_config"));
    const auto json = parse_strict_json(text);
    if (!json.ok() || !json->is_object()) return std::string("this format");
    const auto method = json->find("quant_method");
    return method != json->end() && method->is_string() ? method->get<std::string>() : "this format";
  }

  /// What is the same of many layers, those of a width, is one line.
  struct Problem {
    std::string what, first;
    int64_t layers = 1;
  };
  void add(const std::string& layer, const std::string& what) {
    for (Problem& problem : problems_) {
      if (problem.what == what) return void(++problem.layers);
    }
    problems_.push_back({what, layer});
  }

  void check_fused(const BlockPlan& block, const FusedGroup& group) {
    const Layer& first = block.layers[group.layers.front()];
    const StoredLayer* one = model_.weights->stored(first.name);
    for (const LayerId id : group.layers) {
      const StoredLayer* other = model_.weights->stored(block.layers[id].name);
      const bool same = one && other ? one->scheme.weight == other->scheme.weight &&
                                           one->scheme.input == other->scheme.input
                                     : one == other;
      if (!same)
        return add(block.layers[id].name + " and " + first.name,
                   "merges them, and they have different schemes");
    }
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

  void check_layer(const Layer& layer, int64_t merged) {
    const StoredLayer* stored = model_.weights->stored(layer.name);
    if (!stored || !stored->scheme.weight) return;
    Shard shard{layer.out, layer.in, merged};
    const Cut cut = cut_of(layer.role);
    const bool repeated = (layer.role == Role::kKey || layer.role == Role::kValue) &&
                          layer.out % devices_ != 0;  // heads are copied
    if (cut != Cut::kNone && !repeated) {
      int64_t& size = cut == Cut::kOutputs ? shard.out : shard.in;
      if (size % devices_ != 0) {
        return add(layer.name, "cannot cut its " + std::to_string(size) +
                                   (cut == Cut::kOutputs ? " outputs for " : " inputs for ") +
                                   std::to_string(devices_) + " devices");
      }
      size /= devices_;
      if (cut == Cut::kOutputs) shard.merged /= devices_;
    }
    check_units(layer, *stored->scheme.weight, shard);
    if (!stored->scheme.input && stored->scheme.weight->type == NumberType::kInt)
      check_marlin(layer, *stored->scheme.weight, shard);
    else
      check_multiples(layer, shard, kScaledMultiple, kScaledMultiple);
  }

  /// What shares a scale must lie on one device.
  void check_units(const Layer& layer, const QuantArgs& weight, const Shard& shard) {
    if (weight.granularity == Granularity::kGroup && shard.in % weight.group_size != 0) {
      add(layer.name, "cuts groups of " + std::to_string(weight.group_size) + ": it has " + shard.text());
    }
    if (weight.granularity == Granularity::kBlock &&
        (shard.out % weight.block_rows != 0 || shard.in % weight.block_columns != 0)) {
      add(layer.name, "cuts blocks of " + std::to_string(weight.block_rows) + "x" +
                          std::to_string(weight.block_columns) + ": it has " + shard.text());
    }
  }

  void check_marlin(const Layer& layer, const QuantArgs& weight, const Shard& shard) {
    const bool gptq_kernel = method_ == "gptq" && (weight.bits == 2 || weight.bits == 3);
    if (weight.bits != 4 && weight.bits != 8 && !gptq_kernel) {
      return add(layer.name,
                 "has no kernel for " + std::to_string(weight.bits) + "-bit weights of " + method_);
    }
    const bool grouped = weight.granularity == Granularity::kGroup;
    if (grouped && std::find(std::begin(kMarlinGroups), std::end(kMarlinGroups), weight.group_size) ==
                       std::end(kMarlinGroups)) {
      add(layer.name, "has no kernel for groups of " + std::to_string(weight.group_size) +
                          "; it has them for 32, 64, 128 and whole rows");
    }
    check_multiples(layer, shard, kMarlinOut, kMarlinIn);
  }

  void check_multiples(const Layer& layer, const Shard& shard, int64_t out, int64_t in) {
    if (shard.merged % out == 0 && shard.in % in == 0) return;
    add(layer.name, "needs multiples of [" + std::to_string(out) + ", " + std::to_string(in) +
                        "] for its kernel: it has " + shard.text());
  }

  const Model& model_;
  int64_t devices_;
  std::string method_;
  std::vector<Problem> problems_;
};

}  // namespace

Result<std::vector<std::string>> engine_problems(const Model& model, const std::string& engine,
                                                 int64_t tensor_parallel) {
  if (engine == "vllm") return VllmRules(model, tensor_parallel).problems();
  return Status(Code::kInvalidArgument, "no rules of engine '" + engine + "' are known" +
                                            did_you_mean(engine, {"vllm"}) + " (there are: vllm)");
}

}  // namespace slim
