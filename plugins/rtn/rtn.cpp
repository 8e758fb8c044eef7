#include "slim/plugin.hpp"
#include "slim/quant.hpp"

namespace {
using namespace slim;

/// Plain rounding to nearest: needs no calibration, and is what every other algorithm has to beat.
class RoundToNearest final : public Algorithm {
 public:
  Status setup(const Options& options) override {
    mse_range_ = options.at("range") == "mse";
    return {};
  }
  std::string_view default_scheme() const override { return "w4a16"; }
  Result<Solved> solve(LayerContext& context) override {
    quant::RangeOptions range;
    if (mse_range_) range.method = quant::RangeOptions::Method::kMse;
    return quant::round_to_nearest(context, range);
  }

 private:
  bool mse_range_ = false;
};

constexpr char kSchema[] = R"({"type":"object","properties":{
  "range":{"type":"string","enum":["minmax","mse"],"default":"minmax",
           "description":"how the range of a group is found: its extremes, or the shrunk range of least squared error"}}})";
}  // namespace
SLIM_ALGORITHM_PLUGIN("rtn", RoundToNearest, "Plain rounding to nearest, without calibration", kSchema)
