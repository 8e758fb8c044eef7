#pragma once
#include <cstddef>

#include "common/arithmetic.hpp"

/// The CPU's kernels, compiled once per instruction set. Plain pointers and one thread: the callers (ops.cpp) check, allocate and
/// share the work out. Matrices are row-major; `row` and `rows` choose the rows of one step, that is, of the units (blocks that share
/// a scale) beside each other, which are `unit_columns` wide (the last may be cut short).
namespace slim::kernels {

struct Matrix {
  const void* data = nullptr;
  Float type = Float::kFloat;
  int64_t columns = 0, row_stride = 0;
};

/// Rows [row, row + rows).
struct Step {
  int64_t row = 0, rows = 1, unit_columns = 0;
};

/// Least Σ importance |ŵ - w|^norm over ranges shrunk in `steps` equal steps to 1 - max_shrink. importance null: 1.
struct Shrink {
  const float* importance = nullptr;
  double max_shrink = 0, norm = 2;
  int64_t steps = 0;
};

/// A block of columns of the error-feedback sweep; see column_sweep_ in slim/ops.hpp.
struct Sweep {
  const float* factor = nullptr;                  ///< transposed: row i holds U_0i .. U_ii
  const float *scale = nullptr, *zero = nullptr;  ///< [rows, groups]; null: nothing is rounded; 0
  const int32_t* group = nullptr;
  int64_t columns = 0, groups = 0;
  float min_code = 0, max_code = 0;
  int64_t keep = 0, of = 0;
};
struct SweepRows {
  float *weight = nullptr, *errors = nullptr;
  int8_t* codes = nullptr;
  int64_t weight_stride = 0, errors_stride = 0, codes_stride = 0, row = 0, rows = 0;
};

constexpr int64_t kSearchRows = 16;     ///< whose ranges are searched together: one lane each
constexpr int64_t kLargestGroup = 256;  ///< columns of a group whose range is searched
constexpr int64_t kPanelColumns = 8;    ///< of packed_factor()
/// One group of channels whose error is δ B δᵀ (+ 2 coupling δᵀ).
struct GroupSearch {
  int64_t group = 0;  ///< channels: a multiple of kPanelColumns, at most kLargestGroup
  /// The upper triangle of B, entries off the diagonal doubled, zeros below, in panels of columns: [group / kPanelColumns][group][kPanelColumns].
  const float* triangle = nullptr;
};
/// One group of columns of a sweep.
struct SweepSearch {
  int64_t columns = 0;  ///< at most kLargestGroup
  const float *factor = nullptr,
              *reciprocal = nullptr;  ///< U in panels as GroupSearch has them, padded by zeros; 1 / U_ii
  double least = 0.5;                 ///< smallest share of the extremes that is tried
};
/// Rows of a weight, their first element of the group; rows of coupling likewise, or null. Writes low[r] and high[r] for r in [0, rows).
struct SearchRows {
  const float *weight = nullptr, *coupling = nullptr;
  int64_t weight_stride = 0, coupling_stride = 0, rows = 0;
  float *low = nullptr, *high = nullptr;
};

constexpr int64_t kHistogramTables = 4;  ///< of counts, taken in turns: neighbours often fall into one bin
constexpr int64_t kPackTile = 16;        ///< rows of pack_columns()
constexpr int64_t kAwqColumns = 64;      ///< columns of pack_awq() that make a task
constexpr int64_t kLongestRun = 64;      ///< `of` of mask()
/// Floats of scratch, cleared, that mask() needs.
constexpr int64_t mask_scratch(int64_t columns, int64_t of) { return columns + 2 * of + 32; }

struct Kernels {
  const char* name;
  /// Extremes of each unit: low and high [units]. Both are NaN where a unit holds NaN.
  void (*extremes)(const Matrix& w, const Step&, float* low, float* high);
  /// params_of() of each unit.
  void (*params)(const float* low, const float* high, int64_t units, const CodeRange&, Float scale_type,
                 float* scale, float* zero);
  /// Shrinks low and high [units] in place.
  void (*shrink)(const Matrix& w, const Step&, const Shrink&, const CodeRange&, Float scale_type, float* low,
                 float* high);
  /// Σ importance |ŵ - w|^norm of one step in which all units have one scale.
  double (*shared_error)(const Matrix& w, const Step&, const Shrink&, const CodeRange&, float scale,
                         float zero);
  /// codes: of the step's first row, [rows, columns], int8 or E4M3. sums [rows][2]: what error() adds for each row; or null.
  void (*encode)(const Matrix& w, const Step&, const float* scale, const float* zero, const CodeRange&,
                 Float arithmetic, uint8_t* codes, double* sums);
  void (*decode)(const uint8_t* codes, int64_t columns, const Step&, const float* scale, const float* zero,
                 const CodeRange&, float* w);
  /// Adds Σ (ŵ - w)² and Σ w² to sums[0] and sums[1].
  void (*error)(const Matrix& w, const uint8_t* codes, const Step&, const float* scale, const float* zero,
                const CodeRange&, double* sums);
  /// delta = Q(w * s) / s - w for one row, with the units' extremes as ranges, shrunk if shrink.steps > 0. scratch [columns].
  void (*scaled_error)(const float* w, const float* s, int64_t columns, int64_t unit_columns, const Shrink&,
                       const CodeRange&, Float scale_type, float* scratch, float* delta);
  /// gram_ranges of slim/ops.hpp for one group and up to kSearchRows rows.
  void (*gram_ranges)(const GroupSearch&, const SearchRows&, const CodeRange& codes, Float scale_type);
  /// sweep_ranges of slim/ops.hpp for up to kSearchRows rows.
  void (*sweep_ranges)(const SweepSearch&, const SearchRows&, const CodeRange& codes, Float scale_type);
  /// channel_moments_ over all rows of x for the columns [begin, end); the pointers are those of column 0.
  void (*moments)(const Matrix& x, int64_t rows, int64_t begin, int64_t end, float* sum_abs,
                  float* sum_square, float* min, float* max);
  /// Adds the rows [begin, end) of x to counts [kHistogramTables][2 * bins_per_side]; see histogram in slim/ops.hpp. ends: both extremes,
  /// NaN if there is one.
  void (*histogram)(const Matrix& x, int64_t begin, int64_t end, float per_bin, int64_t bins_per_side,
                    uint32_t* counts, float* ends);
  /// Dense little-endian stream of one row of codes, moved to be unsigned; see pack_codes in slim/ops.hpp.
  void (*pack)(const int8_t* codes, int64_t count, int bits, uint32_t* words);
  /// The streams of up to kPackTile rows [rows, count] as the first columns of words, whose rows are `stride` long. scratch: as much as
  /// kPackTile streams.
  void (*pack_columns)(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t stride,
                       uint32_t* scratch, uint32_t* words);
  /// pack_awq of slim/ops.hpp for the columns [begin, end) of codes [8 * words, count]. packed [count, words].
  void (*pack_awq)(const int8_t* codes, int64_t words, int64_t count, int64_t begin, int64_t end,
                   uint32_t* packed);
  /// sparsity_mask of slim/ops.hpp for one row, of <= kLongestRun: 0 or 1 for each column.
  void (*mask)(const Matrix& w, int64_t row, const float* importance, int64_t keep, int64_t of,
               float* scratch, uint8_t* mask);
  void (*sweep)(const Sweep&, const SweepRows&, float* scratch);
  /// Floats of scratch that sweep() needs.
  size_t (*sweep_scratch)(const Sweep&);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
/// The Gram matrix of bf16 rows by AVX512-BF16: exact products, fp32 sums. A panel holds kGramPanel features of `steps` pairs of tokens,
/// [steps][kGramPanel] words of two bf16 numbers.
constexpr int64_t kGramPanel = 48;
/// acc[i][j] += Σ x_i x_j for the features i of panel a and j of panel b; the first `rows` and `columns` of them.
void gram_panels(const uint32_t* a, const uint32_t* b, int64_t steps, int64_t rows, int64_t columns,
                 float* acc, int64_t stride);
#endif

}  // namespace slim::kernels
