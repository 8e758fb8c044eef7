#pragma once
#include "slim/algorithm.hpp"
#include "slim/histogram.hpp"
#include "slim/quant.hpp"

/// Rounding of a whole layer: weight, and the static scale of its input. What the 8-bit algorithms are made of.
namespace slim::quant {

/// How the interval of a static activation scale is found.
struct InputRange {
  /// What the interval is made of.
  enum class Method : uint8_t {
    kMinMax,        ///< the extremes of all calibration tokens
    kPercentile,    ///< percentile_range()
    kLeastSquares,  ///< least_squares_range()
    kQuantileStepping  ///< quantile_stepping_range()
  };
  Method method = Method::kMinMax;  ///< of the interval
  double percent = 99.99;           ///< kPercentile
};

/// How a layer is rounded.
struct Rounding {
  RangeOptions weight;  ///< ranges of the weight
  InputRange input;     ///< range of a statically quantized input
  /// Layers that engines merge get one per-tensor weight scale, from the largest |w| of all: it takes the place of `weight`'s search.
  bool fuse_scales = false;
  at::ScalarType arithmetic = at::ScalarType::Float;  ///< as in encode()
};

/// Asks for what static activation scales need, for the layers that have one; nothing for all others.
SLIM_API void observe_inputs(const BlockPlan&, const std::vector<const Scheme*>& schemes, const InputRange&, Observations&);

/// The interval of a layer's input, from what observe_inputs() asked for. kInvalidArgument when no token reached the layer,
/// kNumeric when its input held NaN or Inf.
SLIM_API Result<ValueRange> input_range(const LayerContext&, const InputRange&);

/// Weight and static activation scale as the layer's scheme says. A layer whose scheme leaves weights in float keeps them. An
/// error about the weight names its tensor.
SLIM_API Result<Solved> round_layer(LayerContext&, const Rounding&);

/// Base of algorithms that round every layer by itself; they say which schemes they serve, and declare those of the options that
/// they have: activation_range (minmax or absmax; percentile; mse or histogram), percentile, weight_range (minmax, mse),
/// fuse_scales, arithmetic (fp32, bf16, fp16). Schemes without static activation scales ask for no statistic.
class SLIM_API RoundingAlgorithm : public Algorithm {
 public:
  Status setup(const Options&) override;
  void observe(const BlockPlan&, const std::vector<const Scheme*>& schemes, Observations&) const override;
  bool transforms() const override { return false; }
  /// Rows are rounded as they lie in memory; the codes are new.
  int64_t work_bytes(const Layer& layer, const Scheme&) const override { return layer.out * layer.in; }
  Result<Solved> solve(LayerContext&) override;

 private:
  Rounding rounding_;
};

}  // namespace slim::quant
