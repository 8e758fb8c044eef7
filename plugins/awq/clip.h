#pragma once
#include "output_error.h"
#include "slim/quant.hpp"

namespace slim::awq {

/// Ranges of groups as scales and zero points, and what they cost.
struct Ranges {
  quant::Params params;  ///< [out, in / group_size]
  double loss = -1;      ///< the output error of all rows together (OutputError); -1: not known
};

/// Finds per group of g input channels the range whose rounding changes the layer's output least, looking at each group alone
/// (slim::gram_ranges). weight [out, in] fp32, finite; group_size divides in.
Ranges search_group_ranges(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype, const OutputError&);

/// Finds the ranges group after group, each of least cost beside the errors of the groups before it, which are correlated with its own.
/// The same arguments.
Ranges search_joint_ranges(const at::Tensor& weight, const QuantArgs&, at::ScalarType scale_dtype, const OutputError&);

}  // namespace slim::awq
