#pragma once
#include "slim/adapter.hpp"
#include "slim/algorithm.hpp"

/// Tensors of a run on their way to the device that it computes on, and back to the host. Undefined tensors stay undefined, and what is
/// there already is not copied.
namespace slim {

SLIM_API at::Tensor moved(const at::Tensor&, at::Device);
SLIM_API TensorMap moved(TensorMap, at::Device);
SLIM_API Solved moved(Solved, at::Device);
/// A batch for a forward pass: tensors of numbers. Integers (lengths, rows, positions) stay on the host, where adapters make and read
/// them.
SLIM_API Carry carry_on(const Carry&, at::Device);

}  // namespace slim
