#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

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

/// An upper triangular matrix without its lower half: panels of rows, each from its diagonal on. Shared when copied.
class SLIM_API UpperTriangle {
 public:
  static constexpr int64_t kPanelRows = 1024;  ///< of every panel but the last
  UpperTriangle() = default;
  /// Panel i [rows, n - i * kPanelRows]: kPanelRows rows, the last what is left; below the diagonal they hold zeros.
  explicit UpperTriangle(std::vector<at::Tensor> panels) : panels_(std::move(panels)) {}
  bool defined() const { return !panels_.empty(); }                         ///< False for the default.
  int64_t size() const { return defined() ? panels_.front().size(1) : 0; }  ///< Rows, and columns.
  const std::vector<at::Tensor>& panels() const { return panels_; }         ///< As the constructor takes them.
  /// Rows [row, row_end) and columns [column, column_end): a view where one panel holds them all, else a copy.
  at::Tensor block(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const;

 private:
  std::vector<at::Tensor> panels_;
};

/// H⁻¹ = Uᵀ U of a layer's input, U upper triangular, in the order of the sweep.
struct InputFactor {
  UpperTriangle upper;  ///< of `in` rows, fp32
  at::Tensor order;     ///< int64 [in]: the channel at each place of the sweep; undefined: as stored
  at::Tensor added;     ///< fp32 [in], stored order: what stands on H's diagonal beyond E[x²]; undefined: H is not E[x xᵀ] + diag(added)
};

/// Asks for the Gram matrix of a port, for input_factor() of the layers that read it: `slim plan` then counts the factor's memory too.
SLIM_API void observe_factor(Observations&, PortId, int64_t features);
/// An Observations may be this too: it is told of factors.
class SLIM_API FactorObserver {
 public:
  virtual ~FactorObserver();
  virtual void expect_factor(PortId) = 0;  ///< of this port's Gram matrix
};

/// The factor of E[x xᵀ] of the layer's Gram plus `damp` times its mean diagonal, shared through the port cache. Channels that
/// calibration never excited stand alone, so that they are rounded as they are. If fp32 cannot factorize: fp64; then, in fp64,
/// half way to the diagonal (an expert's Gram is already shrunk toward its layer's); each step is noted. nullopt: there is no
/// factor (no token, or only zeros), which is noted under `fallback` ("rounding instead of gptq"). kNumeric: the Gram holds NaN or
/// Inf. `group_size` matters to kGroupAware only and divides `in`.
SLIM_API Result<std::optional<InputFactor>> input_factor(LayerContext&, std::string_view fallback, double damp, SweepOrder,
                                                         int64_t group_size = 0);

/// U = J chol(J H J)⁻¹ J with J the reversal, made in the memory of H: its upper half in panels as UpperTriangle has them, fp32 or fp64.
/// nullopt: H is not positive definite in this precision (a pivot that is mostly rounding error counts as none).
SLIM_API std::optional<UpperTriangle> inverse_factor(std::vector<at::Tensor> hessian);

/// One group of columns when the sweep reaches it.
struct SweepGroup {
  at::Tensor weight;    ///< [out, g], compensated for everything before: do not write
  at::Tensor factor;    ///< the diagonal block of U [g, g]; undefined for groups of more than kPanelRows channels
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
  at::Tensor loss;    ///< δ H δᵀ of every row, fp32 [out]: the sum of the squared errors that were fed back
};

/// Rounds or prunes column after column, each error fed back to the columns that follow. Errors: those of find_params.
SLIM_API Result<Swept> sweep(SweepRequest);

/// Computes δ E[x xᵀ] δᵀ of every row: [rows] fp32. delta [rows, in] fp32; some token was seen.
SLIM_API at::Tensor row_errors(const at::Tensor& delta, const Gram&);
/// Gives the same for what a sweep left: its loss without what the factor's damping added, where the factor tells; else as row_errors() does.
/// weight [out, in] fp32: as it was before the sweep.
SLIM_API at::Tensor row_errors(const Swept&, const at::Tensor& weight, const InputFactor&, const Gram&);

}  // namespace slim::quant
