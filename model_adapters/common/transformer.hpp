#pragma once
#include <ATen/core/Tensor.h>

/// Pieces of transformer blocks that several architectures share. Activations are [tokens, features]: all sequences of a
/// batch one after the other, without padding.
namespace slim::model {

/// x / rms(x) * weight over the last dimension; the mean square in fp32, the result in x's dtype (as transformers rounds).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

}  // namespace slim::model
