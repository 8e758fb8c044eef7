#include "slim/plugin.hpp"
#include "slim/rounding.hpp"

namespace {
using namespace slim;

bool is_int8(const QuantArgs& args) { return args.type == NumberType::kInt && args.bits == 8; }

/// Rounding to int8: weights per channel (or in groups), activations dynamic per token, static per tensor or in float.
/// Calibration is asked for by schemes with static activation scales alone; all others never run the model.
class Int8 final : public quant::RoundingAlgorithm {
 public:
  std::string_view default_scheme() const override { return "w8a8"; }
  Status accepts(const Scheme& scheme) const override {
    if (scheme.sparsity)
      return {Code::kUnsupported,
              "scheme " + scheme.name + " prunes, which int8 does not; use the sparse plugin"};
    if (scheme.weight && is_int8(*scheme.weight) && (!scheme.input || is_int8(*scheme.input))) return {};
    return {Code::kUnsupported,
            "scheme " + scheme.name +
                " has no 8-bit integer weights; choose w8a8, w8a8_static, w8a8_static_sym or w8a16"};
  }
};

constexpr char kSchema[] = R"json({"type":"object","properties":{
  "activation_range":{"type":"string","enum":["minmax","histogram","percentile"],"default":"minmax",
                      "description":"static activation scales: from the extremes, the range of least squared error on a histogram, or a percentile"},
  "percentile":{"type":"number","minimum":50,"maximum":100,"default":99.99,
                "description":"percent of the activations that activation_range = percentile keeps inside the range"},
  "weight_range":{"type":"string","enum":["minmax","mse"],"default":"minmax",
                  "description":"weight scales: from the extremes, or the shrunk range of least squared error"},
  "arithmetic":{"type":"string","enum":["fp32","bf16","fp16"],"default":"fp32",
                "description":"precision of weight / scale: fp32, or the model's dtype as compressed-tensors does on a CPU"}}})json";
}  // namespace
SLIM_ALGORITHM_PLUGIN("int8", Int8, "INT8 weights and activations", kSchema)
