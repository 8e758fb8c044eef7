#include "slim/plugin.hpp"
#include "slim/rounding.hpp"

namespace {
using namespace slim;

bool is_fp8(const QuantArgs& args) { return args.type == NumberType::kFloat && args.bits == 8; }

/// Rounding to E4M3 (Micikevicius et al. 2022): weights per tensor, channel or block; activations static, dynamic or in float.
/// Calibration is asked for by schemes with static activation scales alone; all others never run the model.
class Fp8 final : public quant::RoundingAlgorithm {
 public:
  std::string_view default_scheme() const override { return "fp8_static"; }
  Status accepts(const Scheme& scheme) const override {
    if (scheme.sparsity)
      return {Code::kUnsupported,
              "scheme " + scheme.name + " prunes, which fp8 does not; use the sparse plugin"};
    if (scheme.weight && is_fp8(*scheme.weight) && (!scheme.input || is_fp8(*scheme.input))) return {};
    return {
        Code::kUnsupported,
        "scheme " + scheme.name +
            " has no E4M3 weights; choose fp8_static, fp8_dynamic, fp8_block, fp8_a16 or a variant of these"};
  }
};

constexpr char kSchema[] = R"json({"type":"object","properties":{
  "activation_range":{"type":"string","enum":["absmax","percentile","mse"],"default":"absmax",
                      "description":"static activation scales: from the largest |x|, a percentile of |x|, or least squared error"},
  "percentile":{"type":"number","minimum":50,"maximum":100,"default":99.99,
                "description":"percent of the activations that activation_range = percentile keeps inside the range"},
  "weight_range":{"type":"string","enum":["minmax","mse"],"default":"minmax",
                  "description":"weight scales: from the largest |w|, or the shrunk range of least squared error"},
  "fuse_scales":{"type":"boolean","default":false,
                 "description":"layers that engines merge (q/k/v, gate/up) share one per-tensor weight scale"},
  "arithmetic":{"type":"string","enum":["fp32","bf16","fp16"],"default":"fp32",
                "description":"precision of weight / scale: fp32, or the model's dtype as compressed-tensors does on a CPU"}}})json";
}  // namespace
SLIM_ALGORITHM_PLUGIN("fp8", Fp8, "FP8 (E4M3) weights and activations", kSchema)
