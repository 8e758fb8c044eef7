#pragma once
#include "output_error.h"
#include "slim/quant.hpp"

namespace slim::awq {

/// Finds per group of g input channels the range whose rounding changes the layer's output least, looking at each group alone
/// (slim::gram_ranges). weight [out, in] fp32, finite; group_size divides in.
quant::Params search_group_ranges(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype,
                                  const OutputError&);

/// Finds the ranges group after group, each of least cost beside the errors of all other groups, which are correlated with its own. The same
/// arguments.
quant::Params search_joint_ranges(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype,
                                  const OutputError&);

}  // namespace slim::awq
