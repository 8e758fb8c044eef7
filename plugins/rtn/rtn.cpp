#include "slim/plugin.hpp"
#include "slim/quant.hpp"
#include "slim/statistic.hpp"

namespace {
using namespace slim;

/// Plain rounding to nearest: what every other algorithm has to beat. Needs calibration for static activation scales only.
class RoundToNearest final : public Algorithm {
 public:
  Status setup(const Options& options) override {
    range_ = {};
    if (options.at("range") == "mse") range_.method = quant::RangeOptions::Method::kMse;
    const std::string& arithmetic = options.at("arithmetic");
    arithmetic_ = arithmetic == "bf16" ? at::kBFloat16 : arithmetic == "fp16" ? at::kHalf : at::kFloat;
    return {};
  }
  std::string_view default_scheme() const override { return "w4a16"; }
  Status accepts(const Scheme& scheme) const override {
    if (scheme.sparsity)
      return {Code::kUnsupported, "rtn does not prune; scheme " + scheme.name + " needs the sparse plugin"};
    return {};
  }
  void observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
               Observations& observations) const override {
    for (const Layer& layer : plan.layers) {
      const Scheme* scheme = schemes[static_cast<size_t>(layer.id)];
      if (!scheme || !scheme->input || scheme->input->dynamic) continue;
      observations.want<ChannelMoments>(layer.input, plan.ports[static_cast<size_t>(layer.input)].features);
    }
  }
  bool transforms() const override { return false; }
  /// Rows are rounded as they lie in memory; the codes are new.
  int64_t work_bytes(const Layer& layer, const Scheme&) const override { return layer.out * layer.in; }
  Result<Solved> solve(LayerContext& context) override {
    return quant::round_to_nearest(context, range_, arithmetic_);
  }

 private:
  quant::RangeOptions range_;
  at::ScalarType arithmetic_ = at::kFloat;
};

constexpr char kSchema[] = R"({"type":"object","properties":{
  "range":{"type":"string","enum":["minmax","mse"],"default":"minmax",
           "description":"how the range of a group is found: its extremes, or the shrunk range of least squared error"},
  "arithmetic":{"type":"string","enum":["fp32","bf16","fp16"],"default":"fp32",
                "description":"precision of weight / scale: fp32, or the model's dtype as compressed-tensors does on a CPU"}}})";
}  // namespace
SLIM_ALGORITHM_PLUGIN("rtn", RoundToNearest, "Plain rounding to nearest, without calibration", kSchema)
