#pragma once
#include "output_error.h"
#include "slim/quant.hpp"

namespace slim::awq {

/// Per group of g input channels, the range whose rounding changes the layer's output least (slim::gram_ranges).
/// weight [out, in] fp32, finite; group_size divides in.
quant::Params search_group_ranges(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype,
                                  const OutputError&);

/// The same, then improved: group after group takes the range that costs least beside the errors of all other groups, which are
/// correlated. Never a larger output error than search_group_ranges.
quant::Params search_joint_ranges(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype,
                                  const OutputError&);

}  // namespace slim::awq
