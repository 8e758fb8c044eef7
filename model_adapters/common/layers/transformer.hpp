#pragma once
#include <ATen/core/Tensor.h>

#include <string_view>

#include "slim/status.hpp"

/// Pieces of transformer blocks that several architectures share. Activations are [tokens, features]: all
/// sequences of a batch one after the other, without padding.
namespace slim::model {

/// x / rms(x) * weight over the last dimension; the mean square in fp32, the result in x's dtype (as
/// transformers rounds).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

/// An activation function by its name in config.json's hidden_act.
using Activation = at::Tensor (*)(const at::Tensor&);
/// "silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu"; kUnsupported for others.
Result<Activation> activation(std::string_view name);

}  // namespace slim::model
