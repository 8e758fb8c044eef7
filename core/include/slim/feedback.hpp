#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "slim/algorithm.hpp"
#include "slim/quant.hpp"

/// Rounding and pruning with error feedback: the arithmetic that GPTQ (Frantar et al. 2022) and SparseGPT (Frantar, Alistarh 2023)
/// share. The loss of a row is δ H δᵀ with H = E[x xᵀ] and δ = ŵ - w; what one column loses is made good by the columns after it.
/// fp32, on the weight's device; deterministic. Pure functions unless they take a LayerContext.
namespace slim::quant {

/// In which order the sweep takes the input channels. The result is always in the stored order.
enum class SweepOrder : uint8_t {
  kStored,
  kSalience,   ///< descending E[x²]: GPTQ's desc_act; ties keep the stored order
  kGroupAware  ///< groups by their largest E[x²], channels of a group likewise: groups stay together (GPTQModel's act_group_aware)
};

/// H⁻¹ = Uᵀ U of a layer's input, U upper triangular, in the order of the sweep.
struct InputFactor {
  at::Tensor upper;  ///< [in, in] fp32
  at::Tensor order;  ///< int64 [in]: the channel at each place of the sweep; undefined: as stored
};

/// The factor of E[x xᵀ] of the layer's Gram plus `damp` times its mean diagonal, shared through the port cache. Channels that
/// calibration never excited stand alone, so that they are rounded as they are. If fp32 cannot factorize: fp64; then, in fp64,
/// half way to the diagonal (an expert's Gram is already shrunk toward its layer's); each step is noted. nullopt: there is no
/// factor (no token, or only zeros), which is noted under `fallback` ("rounding instead of gptq"). kNumeric: the Gram holds NaN or
/// Inf. `group_size` matters to kGroupAware only and divides `in`.
SLIM_API Result<std::optional<InputFactor>> input_factor(LayerContext&, std::string_view fallback, double damp, SweepOrder,
                                                         int64_t group_size = 0);

/// U = J chol(J H J)⁻¹ J with J the reversal: one Cholesky and one triangular inverse. H [n, n] symmetric, fp32 or fp64; U has its
/// dtype. nullopt: H is not positive definite in this precision (a pivot that is mostly rounding error counts as none).
SLIM_API std::optional<at::Tensor> inverse_factor(const at::Tensor& hessian);

/// One group of columns when the sweep reaches it.
struct SweepGroup {
  at::Tensor weight;    ///< [out, g], compensated for everything before: do not write
  at::Tensor factor;    ///< the diagonal block of U [g, g]
  at::Tensor channels;  ///< int64 [g], which input channels these are; undefined: begin, begin + 1, ...
  int64_t begin = 0;    ///< place in the sweep
};

/// What sweep() is given.
struct SweepRequest {
  at::Tensor weight;   ///< [out, in] fp32, stored order; overwritten
  InputFactor factor;  ///< of the layer's input
  const QuantArgs* args = nullptr;   ///< integers; null: nothing is rounded
  std::optional<Sparsity> sparsity;  ///< counted along the sweep: needs SweepOrder::kStored
  at::Tensor group;                  ///< int32 [in], stored order: the column of scale and zero of each channel
  Params params;                     ///< [out, groups]; with `find_params` these are replaced group by group
  /// Scale and zero [out, 1] of a group, found on its compensated weights. Groups must then lie together in the sweep.
  std::function<Result<Params>(const SweepGroup&)> find_params;
};

/// What sweep() found.
struct Swept {
  at::Tensor weight;  ///< [out, in] fp32, decoded
  at::Tensor codes;   ///< int8; undefined if nothing was rounded
  Params params;      ///< [out, groups]; undefined if nothing was rounded
};

/// Rounds or prunes column after column, each error fed back to the columns that follow. Errors: those of find_params.
SLIM_API Result<Swept> sweep(SweepRequest);

/// δ H δᵀ of every row: [rows] fp32. delta [rows, in] fp32, H [in, in] symmetric.
SLIM_API at::Tensor row_errors(const at::Tensor& delta, const at::Tensor& hessian);

}  // namespace slim::quant
