#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "slim/export.hpp"

/// Kernels that a backend may replace: operators of LibTorch's `slim::` library. The core registers a reference kernel for every
/// device; a backend registers its own for its dispatch key with TORCH_LIBRARY_IMPL(slim, KEY, m). These functions are the
/// typed way to call them. Safe from any thread, as long as no two calls write one tensor.
namespace slim::ops {

/// From now on the functions below run the core's reference kernels, whatever backends are loaded: for comparisons and for finding
/// out whether a kernel is at fault. For the whole process.
SLIM_API void force_reference(bool);
/// What force_reference() was last told; false before.
SLIM_API bool reference_forced();
/// Names of all operators, without `slim::`, in alphabetical order.
SLIM_API std::vector<std::string> operator_names();

/// `slim::gram_(Tensor(a!) acc, Tensor x) -> ()`: adds the upper triangle of xᵀ x to that of acc [features, features] fp32; what lies
/// below the diagonal afterwards is unspecified (see mirror_upper_). x [tokens, features] bf16, fp16 or fp32, on acc's device. Sums in fp32.
SLIM_API void gram_(at::Tensor acc, const at::Tensor& x);
/// Copies the upper triangle of a square matrix over the lower one, in place.
SLIM_API void mirror_upper_(const at::Tensor& matrix);

/// Tells in which dtype matrix products of `dtype` are computed on `device`: bf16 and fp16 as they are where the processor multiplies them
/// itself (AVX512-BF16, AVX512-FP16, AMX) and on other devices; else fp32, in which products of 16-bit numbers are exact and sums are as in
/// that hardware. The one place that decides it: for linear(), attention, statistics, evaluation and proofs. SLIM_PRODUCTS=native in the
/// environment leaves all products to LibTorch.
SLIM_API at::ScalarType product_dtype(at::ScalarType dtype, at::Device device);
/// Says how products of `dtype` are computed on `device`, in words, for reports: "bfloat16 by AVX512-BF16", "bfloat16 in fp32 (sgemm)".
SLIM_API std::string product_text(at::ScalarType dtype, at::Device device);
/// True where LibTorch's products of `dtype` on the host keep copies of what they multiply, reordered: of 16 bits, but for those by AMX. For plans of
/// memory.
SLIM_API bool products_keep_copies(at::ScalarType dtype);
/// Computes x wᵀ + bias as product_dtype() says: sums in fp32, the result rounded once to x's dtype. x [..., in]; weight [out, in] and bias
/// [out] (or undefined) of x's dtype and device. Where 16-bit numbers are multiplied in fp32 the weight is converted tile by tile: kLinearTileBytes
/// at most beside x and the result in fp32.
SLIM_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});
/// Bytes of the largest tile of a weight in fp32 that linear() holds.
constexpr int64_t kLinearTileBytes = int64_t{16} << 20;

/// `slim::channel_moments_(Tensor(a!) sum_abs, Tensor(b!) sum_square, Tensor(c!) min, Tensor(d!) max, Tensor x) -> ()`:
/// adds Σ|x| and Σx² over the rows of x [tokens, features] and widens min and max, all [features] fp32. x has at least one row. NaN stays NaN in
/// all four.
SLIM_API void channel_moments_(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max,
                               const at::Tensor& x);

/// Counts of values, and their extremes.
struct BinCounts {
  at::Tensor counts;  ///< int64 [2 * bins_per_side] on the CPU
  double min = 0;     ///< exact; NaN if a value is
  double max = 0;     ///< likewise
};
/// `slim::histogram(Tensor x, int exponent, int bins_per_side) -> (Tensor counts, Tensor extremes)`: bin i counts the values of
/// [(i - bins_per_side) w, (i + 1 - bins_per_side) w) with w = 2^exponent; smaller ones and NaN count in the first bin, larger ones in
/// the last. One pass also finds the extremes (fp32 [2]), so that a caller sees whether the bins were wide enough. x [tokens, features]
/// bf16, fp16 or fp32 (the function takes any shape and float dtype), not empty; exponent -126..127.
SLIM_API BinCounts histogram(const at::Tensor& x, int64_t exponent, int64_t bins_per_side);

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

/// How a weight [out, in] is rounded: the blocks of elements that share a scale, and their codes.
struct Rounding {
  int64_t unit_rows = 1;                    ///< rows that share a scale
  int64_t unit_columns = 0;                 ///< columns; blocks may be cut short at the end; [out, in]: the whole tensor
  int64_t bits = 4;                         ///< codes lie in [-2^(bits-1), 2^(bits-1) - 1]
  bool e4m3 = false;                        ///< float codes in [-448, 448] instead; symmetric
  bool symmetric = true;                    ///< no zero points
  at::ScalarType scale_dtype = at::ScalarType::Float;  ///< scales are numbers of this dtype
};

/// How ranges are found. steps 0: the extremes; else they are shrunk to 1 - max_shrink in equal steps, and the step of least
/// Σ importance |ŵ - w|^norm wins.
struct RangeSearch {
  at::Tensor importance;  ///< [in] fp32; undefined: 1
  double max_shrink = 0;  ///< of the largest range
  double norm = 2;        ///< exponent of the error
  int64_t steps = 0;      ///< ranges that are tried besides the largest
  double abs_max = 0;  ///< > 0 and the unit is a whole symmetric tensor: stands for max|w|, which must not be larger
};

/// Scales and zero points, fp32 [ceil(out / unit_rows), ceil(in / unit_columns)].
struct ScaleZero {
  at::Tensor scale;  ///< positive
  at::Tensor zero;   ///< integers; undefined when symmetric
};
/// A rounded weight.
struct RoundedUnits {
  at::Tensor codes;  ///< [out, in] int8 or float8_e4m3fn
  at::Tensor scale;  ///< as in ScaleZero
  at::Tensor zero;   ///< as in ScaleZero
};

// In all of the following a weight is bf16, fp16 or fp32 [out, in], scale and zero are as in ScaleZero, and arithmetic is fp32 in
// the order that slim/quant.hpp documents: the results are bit-equal on every CPU.

/// `slim::choose_params(Tensor weight, int unit_rows, int unit_columns, int bits, bool e4m3, bool symmetric, ScalarType
/// scale_dtype, Tensor? importance, float max_shrink, float norm, int steps, float abs_max) -> (Tensor scale, Tensor zero)`.
/// A unit that holds NaN or Inf gets a scale that is not finite. (Ranges found by search may differ from the reference's where
/// two steps have nearly the same error.)
SLIM_API ScaleZero choose_params(const at::Tensor& weight, const Rounding&, const RangeSearch& = {});

/// `slim::encode(Tensor weight, Tensor scale, Tensor? zero, int unit_rows, int unit_columns, int bits, ScalarType arithmetic) ->
/// Tensor`: int8 codes clamp(round(w / scale + zero)), ties to even. Quotient and sum are rounded to `arithmetic` first.
/// `slim::cast_e4m3(Tensor weight, Tensor scale, int unit_rows, int unit_columns, ScalarType arithmetic) -> Tensor`: float8_e4m3fn,
/// ties to even, saturating. The weight must be finite.
SLIM_API at::Tensor encode(const at::Tensor& weight, const ScaleZero&, const Rounding&, at::ScalarType arithmetic);

/// `slim::round_units(Tensor weight, int unit_rows, int unit_columns, int bits, bool e4m3, bool symmetric, ScalarType scale_dtype,
/// ScalarType arithmetic, Tensor? importance, float max_shrink, float norm, int steps, float abs_max) -> (Tensor codes, Tensor
/// scale, Tensor zero)`: choose_params and encode in one pass over the weight.
SLIM_API RoundedUnits round_units(const at::Tensor& weight, const Rounding&, const RangeSearch&, at::ScalarType arithmetic);

/// `slim::decode(Tensor codes, Tensor scale, Tensor? zero, int unit_rows, int unit_columns) -> Tensor`: (codes - zero) * scale,
/// fp32. codes int8 or float8_e4m3fn without NaN.
SLIM_API at::Tensor decode(const at::Tensor& codes, const ScaleZero&, const Rounding&);

/// `slim::rounding_error(Tensor weight, Tensor codes, Tensor scale, Tensor? zero, int unit_rows, int unit_columns) -> Tensor`:
/// Σ (ŵ - w)² and Σ w², fp64 [2] on the CPU.
struct RoundingError {
  double error = 0;   ///< Σ (ŵ - w)²
  double weight = 0;  ///< Σ w²
};
/// `slim::round_units_measured(...) -> (Tensor codes, Tensor scale, Tensor zero, Tensor error)`, arguments as in round_units:
/// round_units and rounding_error in one pass over the weight.
struct MeasuredUnits {
  RoundedUnits rounded;  ///< what round_units gives
  RoundingError error;   ///< what rounding_error gives for it
};
/// Rounds and measures, as said at MeasuredUnits.
SLIM_API MeasuredUnits round_units_measured(const at::Tensor& weight, const Rounding&, const RangeSearch&, at::ScalarType arithmetic);
/// The error of codes; tensors as in encode().
SLIM_API RoundingError rounding_error(const at::Tensor& weight, const at::Tensor& codes, const ScaleZero&, const Rounding&);

/// `slim::pack_codes(Tensor codes, int bits) -> Tensor`: int8 [rows, count] as dense little-endian streams int32
/// [rows, ceil(count * bits / 32)], one per row: value k, moved to be unsigned by adding 2^(bits-1), takes the bits
/// k*bits .. k*bits+bits-1, and may straddle two words; unused bits are 0. bits 1..8.
SLIM_API at::Tensor pack_codes(const at::Tensor& codes, int64_t bits);

/// `slim::pack_columns(Tensor codes, int bits) -> Tensor`: the same streams as columns, int32 [ceil(count * bits / 32), rows]: `qweight`
/// of GPTQ for codes [out, in], also of 3 bits, where 32 codes fill three words.
SLIM_API at::Tensor pack_columns(const at::Tensor& codes, int64_t bits);

/// `slim::pack_awq(Tensor codes) -> Tensor`: 4-bit codes int8 [out, n] in the order of AutoAWQ's "gemm" kernels, int32 [n, out / 8]:
/// word w holds the channels 8w .. 8w+7, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on, moved to be unsigned by adding 8.
/// out is a multiple of 8.
SLIM_API at::Tensor pack_awq(const at::Tensor& codes);

/// `slim::sparsity_mask(Tensor weight, Tensor? importance, int keep, int of) -> Tensor`: bool [rows, in]: true for the `keep` entries of
/// the largest |w| * importance, a product in fp32, of every `of` consecutive columns of a row (of those in a shorter last run too); of
/// equals the earlier one, and NaN is as large as Inf. n:m pruning by magnitude, or with importance sqrt(E[x²]) that of Wanda (Sun et al.
/// 2023). weight [rows, in] bf16, fp16 or fp32; importance fp32 [in], not negative; undefined: 1. 1 <= keep < of.
SLIM_API at::Tensor sparsity_mask(const at::Tensor& weight, const at::Tensor& importance, int64_t keep, int64_t of);

/// `slim::sweep_ranges(Tensor weight, Tensor factor, int bits, bool symmetric, ScalarType scale_dtype) -> (Tensor low, Tensor high)`: the
/// range of one group of columns whose column sweep ends with the least Σ e² (see column_sweep_; it is the loss of GPTQ on these columns).
/// Both ends shrink together in steps of 1/20 of the extremes, to a half, or to 3/10 for up to 3 bits; with zero points each end is then
/// moved alone by 1/20, 1/10 and 1/5, the low one first. weight fp32 [rows, g], finite and compensated for all columns before the group; factor
/// fp32 [g, g], its diagonal block of U. Results fp32 [rows, 1]. (Kernels may choose another range where two have nearly the same loss.)
struct GroupRanges {
  at::Tensor low;   ///< fp32 [rows, groups]
  at::Tensor high;  ///< fp32 [rows, groups]
};
/// Finds the ranges of one group, as said above. Uses bits, symmetric and scale_dtype of the rounding.
SLIM_API GroupRanges sweep_ranges(const at::Tensor& weight, const at::Tensor& factor, const Rounding&);

/// `slim::gram_ranges(Tensor weight, Tensor blocks, Tensor? coupling, int bits, bool e4m3, bool symmetric, ScalarType scale_dtype) ->
/// (Tensor low, Tensor high)`: for each group of g = blocks.size(-1) input channels of each row, the range whose rounding changes the
/// layer's output least: δ E[x xᵀ]_gg δᵀ with δ = ŵ - w, which is exact for the group alone, plus 2 coupling δᵀ where there is one:
/// coupling = Σ_h δ_h E[x xᵀ]_hg over the groups h whose rounding is known. Both ends shrink together in steps of 1/40 of the extremes
/// down to a half; with zero points each end is then moved alone by 1/20 and 1/10 either way, the low one first. With coupling the best common
/// range is moved by 1/80 either way first, and the moves of single ends are also of 1/80 and 1/40.
/// weight fp32 [out, in], finite; blocks fp32 [in / g, g, g], the blocks of E[x xᵀ] on its diagonal; coupling fp32 [out, in]. Results fp32
/// [out, in / g]. (Kernels may choose another range where two have nearly the same error.)
SLIM_API GroupRanges gram_ranges(const at::Tensor& weight, const at::Tensor& blocks, const at::Tensor& coupling, const Rounding&);

/// `slim::scale_losses(Tensor weight, Tensor scales, Tensor? gram, Tensor? inputs, int unit_columns, int bits, bool e4m3, bool
/// symmetric, ScalarType scale_dtype, Tensor? importance, float max_shrink, float norm, int steps) -> Tensor`: the error of the
/// layer's output for every candidate s of AWQ (Lin et al. 2023) at once: with δ = Q(W s) / s - W, Σ over rows of δ gram δᵀ, or
/// Σ (δ inputsᵀ)². weight fp32 [rows, in]; scales fp32 [candidates, in], positive; gram fp32 [in, in], symmetric; inputs
/// [tokens, in] any float dtype: exactly one of the two. Units are rows of unit_columns. A search of ranges weighs channel i of
/// candidate s by importance_i / s_i². fp64 [candidates] on the CPU. With gram [in / g, g, g], the blocks of groups of g channels, each group is
/// looked at alone: fp64 [candidates, in / g].
SLIM_API at::Tensor scale_losses(const at::Tensor& weight, const at::Tensor& scales, const at::Tensor& gram, const at::Tensor& inputs,
                                 const Rounding&, const RangeSearch&);

}  // namespace slim::ops
