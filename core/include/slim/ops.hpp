#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

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

/// `slim::column_sweep_(Tensor(a!) weight, Tensor(b!) errors, Tensor(c!) codes, Tensor factor, Tensor? scale, Tensor? zero,
/// Tensor? group, int min_code, int max_code, int keep, int of) -> ()`: one block of columns of the error-feedback sweep of GPTQ
/// (Frantar et al. 2022) and SparseGPT (Frantar, Alistarh 2023). Column after column, in every row:
///     w_i := its decoded value or 0;  e_i = (w_i before - w_i after) / U_ii;  w_j -= e_i U_ij for the block's later columns j.
/// The caller then subtracts errors x U[block, rest] from the columns after the block.
///   weight  [rows, columns] fp32, in: compensated for all earlier blocks; out: decoded results. A view with unit column stride.
///   errors  [rows, columns] fp32, out, like weight.   codes [rows, columns] int8, out, like weight; untouched without scale.
///   factor  [columns, columns] fp32, the diagonal block of U (H^-1 = U^T U): its upper triangle is read. Unit column stride.
///   scale   [rows, groups] fp32, positive; zero the same, integers; group [columns] int32: the column of scale and zero that a
///           column uses. Code: clamp(round(w / scale + zero), min_code, max_code), ties to even, all in fp32; value:
///           (code - zero) * scale. Without scale nothing is rounded. zero undefined: 0.
///   keep, of   keep of every `of` consecutive columns (counted from the block's first; a shorter last run too) stay, the others
///           become 0 (code: zero): those of largest w^2 / U_ii^2 when the sweep reaches the run, the earlier one of equals. of 0:
///           all stay. of <= 64.
SLIM_API void column_sweep_(at::Tensor weight, at::Tensor errors, at::Tensor codes, const at::Tensor& factor,
                            const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& zero,
                            const std::optional<at::Tensor>& group, int64_t min_code, int64_t max_code, int64_t keep, int64_t of);

}  // namespace slim::ops
