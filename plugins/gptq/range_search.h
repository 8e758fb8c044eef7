#pragma once
#include "slim/feedback.hpp"

namespace slim::gptq {

/// The range of a group, per row, whose rounding costs least when the sweep itself rounds the group: Σ e² over its columns is what
/// the layer's loss grows by, if the columns after the group make good what they can. Both ends shrink together; with zero points
/// each end is then moved alone. Costs one block of the sweep per candidate.
quant::Params search_range(const quant::SweepGroup&, const QuantArgs&, at::ScalarType scale_dtype);

}  // namespace slim::gptq
