#pragma once
#include "slim/ops.hpp"
#include "slim/quant.hpp"

namespace slim::quant {

/// A rounded weight, and what rounding did to it.
struct Measured {
  Quantized quantized;
  ops::RoundingError error;
};
/// choose_params(), encode() and rounding_error() in one pass; weight bf16, fp16 or fp32.
SLIM_API Result<Measured> quantize(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype,
                                   const RangeOptions&, at::ScalarType arithmetic);
/// What rounding did to a weight (bf16, fp16 or fp32), without making the decoded weight; not for groups of scattered channels.
SLIM_API ops::RoundingError rounding_error(const at::Tensor& weight, const Quantized&);

/// A LayerContext may be this too: rounding then reads the weight as it lies in memory, without an fp32 copy, and tells the error that it
/// has found on the way.
class SLIM_API StoredWeight {
 public:
  virtual ~StoredWeight();
  /// bf16, fp16 or fp32 [out, in]; not to be written to.
  virtual at::Tensor stored_weight() const = 0;
  /// What rounding that weight to these codes did.
  virtual void measured(const at::Tensor& codes, const ops::RoundingError&) = 0;
};

}  // namespace slim::quant
