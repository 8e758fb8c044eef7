#pragma once
#include <ATen/core/Tensor.h>

#include "slim/export.hpp"

/// Kernels that a backend may replace: operators of LibTorch's `slim::` library. The core registers a reference kernel for every
/// device; a backend registers its own for its dispatch key with TORCH_LIBRARY_IMPL(slim, KEY, m). These functions are the
/// typed way to call them. Safe from any thread, as long as no two calls write one tensor.
namespace slim::ops {

/// `slim::gram_(Tensor(a!) acc, Tensor x) -> ()`: acc += xᵀ x. acc [features, features] fp32, both triangles are written;
/// x [tokens, features] bf16, fp16 or fp32, on acc's device. Sums in fp32.
SLIM_API void gram_(at::Tensor acc, const at::Tensor& x);

/// `slim::channel_moments_(Tensor(a!) sum_abs, Tensor(b!) sum_square, Tensor(c!) min, Tensor(d!) max, Tensor x) -> ()`:
/// adds Σ|x| and Σx² over the rows of x [tokens, features] and widens min and max, all [features] fp32. x has at least one row.
SLIM_API void channel_moments_(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max,
                               const at::Tensor& x);

}  // namespace slim::ops
