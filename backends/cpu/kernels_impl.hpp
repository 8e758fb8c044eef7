// Included by kernels_*.cpp, once per instruction set, with SLIM_KERNELS naming the table. Everything has internal linkage and the
// standard library stays out: a function of these flags must not be the one that the rest of the program links.
#include "kernels.hpp"
#include "vector.hpp"

namespace slim::kernels {
namespace {

template <class T>
const T* row_of(const Matrix& m, int64_t row) {
  return static_cast<const T*>(m.data) + row * m.row_stride;
}

/// f(T{}) with the element type.
template <class F>
inline void with_type(Float type, F&& f) {
  if (type == Float::kFloat) return f(float{});
  if (type == Float::kBFloat16) return f(BFloat16{});
  return f(Half{});
}

/// f(range) with a range whose kind is known to the compiler.
template <class F>
inline void with_range(const CodeRange& range, F&& f) {
  if (range.is_e4m3) return f(FixedCodeRange<true, true>{range.min, range.max});
  if (range.symmetric) return f(FixedCodeRange<false, true>{range.min, range.max});
  return f(FixedCodeRange<false, false>{range.min, range.max});
}

template <Float kType>
struct Arithmetic {
  static constexpr Float value = kType;
};
template <class F>
inline void with_arithmetic(Float type, F&& f) {
  if (type == Float::kFloat) return f(Arithmetic<Float::kFloat>{});
  if (type == Float::kBFloat16) return f(Arithmetic<Float::kBFloat16>{});
  return f(Arithmetic<Float::kHalf>{});
}

/// f(unit, first column, columns) for the units side by side.
template <class F>
inline void for_each_unit(int64_t columns, int64_t unit_columns, F&& f) {
  int64_t unit = 0;
  for (int64_t begin = 0; begin < columns; begin += unit_columns, ++unit) {
    f(unit, begin, columns - begin < unit_columns ? columns - begin : unit_columns);
  }
}

/// f(first, count) for runs of up to kLanes elements.
template <class F>
SLIM_KERNEL void for_each_vector(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, count - i);
}

// ---- ranges -----------------------------------------------------------------------------------------------------------

struct Extremes {
  Floats low, high;
  Words size;  // largest |x| by its bits: beyond those of Inf for NaN
};

SLIM_KERNEL void widen(Extremes& e, Floats v) {
  const Words size = bit_cast<Words>(v) & 0x7fffffffu;
  e.low = v < e.low ? v : e.low;
  e.high = v > e.high ? v : e.high;
  e.size = size > e.size ? size : e.size;
}
template <class T>
SLIM_KERNEL void widen(Extremes& extremes, const T* x, int64_t count) {
  Extremes e = extremes;
  for_each_vector(
      count, [&](int64_t i, int64_t n) __attribute__((always_inline)) { widen(e, load_some(x + i, n)); });
  extremes = e;
}
/// The ends; both NaN where one value is.
SLIM_KERNEL void finish(const Extremes& e, float& low, float& high) {
  const bool has_nan = largest((e.size > 0x7f800000u) ? broadcast(1) : Floats{}) > 0;
  low = has_nan ? __builtin_nanf("") : smallest(e.low);
  high = has_nan ? __builtin_nanf("") : largest(e.high);
}

template <class T>
void extremes_of(const Matrix& w, const Step& step, float* low, float* high) {
  for_each_unit(w.columns, step.unit_columns, [&](int64_t unit, int64_t begin, int64_t count) {
    const Floats first = load_some(row_of<T>(w, step.row) + begin, count);
    Extremes e{first, first, Words{}};
    for (int64_t r = 0; r < step.rows; ++r) widen(e, row_of<T>(w, step.row + r) + begin, count);
    finish(e, low[unit], high[unit]);
  });
}

void extremes(const Matrix& w, const Step& step, float* low, float* high) {
  with_type(w.type, [&](auto type) { extremes_of<decltype(type)>(w, step, low, high); });
}

void params(const float* low, const float* high, int64_t units, const CodeRange& range, Float scale_type,
            float* scale, float* zero) {
  for_each_vector(units, [&](int64_t i, int64_t n) {
    const ScaleZero<Floats> p = params_of(load_some(low + i, n), load_some(high + i, n), range, scale_type);
    store_some(scale + i, p.scale, n);
    if (!range.symmetric) store_some(zero + i, p.zero, n);
  });
}

/// Σ importance |ŵ - w|^norm over one row of a unit.
template <class T, class Range>
SLIM_KERNEL double row_error(const T* w, const float* importance, int64_t count, const Range& range,
                             float scale, float zero, double norm) {
  const Floats s = broadcast(scale), z = broadcast(zero);
  Floats total{};
  for_each_vector(
      count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        const Floats x = load_some(w + i, n);
        const Floats e = decoded(code_value(x, s, z, range, Float::kFloat), s, z, range) - x;
        Floats power = e * e;
        if (norm != 2) {
          for (int k = 0; k < kLanes; ++k)
            power[k] = __builtin_powf(__builtin_fabsf(e[k]), static_cast<float>(norm));
        }
        if (importance) power *= load_some(importance + i, n);
        total += keep_first(power, n);
      });
  return sum_double(total);
}

template <class T, class Range>
void shrink_units(const Matrix& w, const Step& step, const Shrink& options, const Range& range,
                  Float scale_type, float* low, float* high) {
  for_each_unit(w.columns, step.unit_columns, [&](int64_t unit, int64_t begin, int64_t count) {
    const float* importance = options.importance ? options.importance + begin : nullptr;
    double best_error = 0;
    float best = 1;
    for (int64_t k = 0; k <= options.steps; ++k) {
      const auto ratio = static_cast<float>(1.0 - options.max_shrink * static_cast<double>(k) /
                                                      static_cast<double>(options.steps));
      const ScaleZero<float> p = params_of(low[unit] * ratio, high[unit] * ratio, range, scale_type);
      double error = 0;
      for (int64_t r = 0; r < step.rows && (k == 0 || error < best_error); ++r) {
        error += row_error(row_of<T>(w, step.row + r) + begin, importance, count, range, p.scale, p.zero,
                           options.norm);
      }
      if (k == 0 || error < best_error) {
        best_error = error;
        best = ratio;
      }
    }
    low[unit] *= best;
    high[unit] *= best;
  });
}

void shrink(const Matrix& w, const Step& step, const Shrink& options, const CodeRange& codes,
            Float scale_type, float* low, float* high) {
  with_type(w.type, [&](auto type) {
    with_range(codes, [&](auto range) {
      shrink_units<decltype(type)>(w, step, options, range, scale_type, low, high);
    });
  });
}

double shared_error(const Matrix& w, const Step& step, const Shrink& options, const CodeRange& codes,
                    float scale, float zero) {
  double error = 0;
  with_type(w.type, [&](auto type) {
    with_range(codes, [&](auto range) {
      for (int64_t r = 0; r < step.rows; ++r) {
        error += row_error(row_of<decltype(type)>(w, step.row + r), options.importance, w.columns, range,
                           scale, zero, options.norm);
      }
    });
  });
  return error;
}

// ---- codes ------------------------------------------------------------------------------------------------------------

/// What a row's elements are divided by, where a product with the reciprocal and one correction give the same codes in a third of the
/// time. For significands of bf16 and fp16 the corrected quotient is the rounded one, bit for bit, whatever the divisor (Markstein 1990;
/// tried for all pairs); only where |w / scale| is far below the smallest code may it differ, which becomes the same zero.
struct Divisor {
  Floats scale, reciprocal;
  bool exact;  ///< nothing that matters overflows or underflows

  template <class T>
  static Divisor of(const T*, float scale) {
    constexpr float kSmall = 8.6736174e-19F, kLarge = 1.1529215e18F;  // 2^-60, 2^60
    return {broadcast(scale), broadcast(1 / scale),
            kFused && sizeof(T) == 2 && scale >= kSmall && scale <= kLarge};
  }
  SLIM_KERNEL Floats quotient(Floats w) const {
    const Floats q = w * reciprocal, corrected = multiply_add(multiply_add(-q, scale, w), reciprocal, q);
    return bit_cast<Floats>(bit_cast<Words>(corrected) | (bit_cast<Words>(w) & 0x80000000u));  // of -0 too
  }
};

/// The code as a number: what code_from() gives for bytes_of().
SLIM_KERNEL Floats number_of(Floats scaled, bool is_e4m3) {
  if (!is_e4m3) return round_even(scaled);
  const Words bits = bit_cast<Words>(scaled), sign = bits & 0x80000000u, size = bits & 0x7fffffffu;
  const Words normal = (size + ((size >> 20) & 1u) + 0x7ffffu) & 0xfff00000u;
  const Floats subnormal = (bit_cast<Floats>(size) + 16384.0F) - 16384.0F;
  return bit_cast<Floats>((size < 0x3c800000u ? bit_cast<Words>(subnormal) : normal) | sign);
}
SLIM_KERNEL Bytes bytes_of(Floats scaled, bool is_e4m3) {
  if (is_e4m3) return __builtin_convertvector(e4m3_from_float(scaled), Bytes);
  return bit_cast<Bytes>(
      __builtin_convertvector(__builtin_convertvector(round_even(scaled), Ints), SignedBytes));
}
template <class Range>
SLIM_KERNEL Floats code_from(Bytes bytes, const Range& range) {
  if (range.is_e4m3) return e4m3_to_float<Floats>(__builtin_convertvector(bytes, Words));
  return __builtin_convertvector(__builtin_convertvector(bit_cast<SignedBytes>(bytes), Ints), Floats);
}
SLIM_KERNEL Bytes load_codes(const uint8_t* from, int64_t count) {
  if (count >= kLanes) return load_bytes<Bytes>(from);
  Bytes bytes{};
  memcpy(&bytes, from, static_cast<size_t>(count));
  return bytes;
}

/// One row; with kMeasured also Σ (ŵ - w)² and Σ w², added as error() adds them.
template <Float kArithmetic, bool kMeasured, class T, class Range>
void encode_row(const T* from, const Matrix& w, const Step& step, const float* scale, const float* zero,
                const Range& range, uint8_t* out, double* sums) {
  Floats error{}, size{};
  for_each_unit(w.columns, step.unit_columns, [&](int64_t unit, int64_t begin, int64_t count) {
    const Divisor s = Divisor::of(from, scale[unit]);
    const Floats z = range.symmetric ? Floats{} : broadcast(zero[unit]);
    Floats unit_error = error, unit_size = size;
    const auto encode_unit = [&](auto&& quotient) __attribute__((always_inline)) {
      for_each_vector(
          count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            const Floats value = load_some(from + begin + i, n),
                         x = shifted(quotient(value), z, range, kArithmetic);
            store_some(out + begin + i, bytes_of(x, range.is_e4m3), n);
            if constexpr (kMeasured) {
              const Floats e = keep_first(decoded(number_of(x, range.is_e4m3), s.scale, z, range) - value, n);
              const Floats kept = keep_first(value, n);
              unit_error += e * e;
              unit_size += kept * kept;
            }
          });
    };
    if (s.exact) {
      encode_unit([&](Floats w) __attribute__((always_inline)) { return s.quotient(w); });
    } else {
      encode_unit([&](Floats w) __attribute__((always_inline)) { return Floats(w / s.scale); });
    }
    error = unit_error;
    size = unit_size;
  });
  if constexpr (kMeasured) {
    sums[0] += sum_double(error);
    sums[1] += sum_double(size);
  }
}

void encode(const Matrix& w, const Step& step, const float* scale, const float* zero, const CodeRange& codes,
            Float type, uint8_t* out, double* sums) {
  with_type(w.type, [&](auto element) {
    with_range(codes, [&](auto range) {
      with_arithmetic(type, [&](auto arithmetic) {
        constexpr Float kArithmetic = decltype(arithmetic)::value;
        for (int64_t r = 0; r < step.rows; ++r, out += w.columns) {
          const auto* from = row_of<decltype(element)>(w, step.row + r);
          if (sums)
            encode_row<kArithmetic, true>(from, w, step, scale, zero, range, out, sums + 2 * r);
          else
            encode_row<kArithmetic, false>(from, w, step, scale, zero, range, out, nullptr);
        }
      });
    });
  });
}

void decode(const uint8_t* in, int64_t columns, const Step& step, const float* scale, const float* zero,
            const CodeRange& codes, float* w) {
  with_range(codes, [&](auto range) {
    for (int64_t r = 0; r < step.rows; ++r, in += columns, w += columns) {
      for_each_unit(columns, step.unit_columns, [&](int64_t unit, int64_t begin, int64_t count) {
        const Floats s = broadcast(scale[unit]), z = range.symmetric ? Floats{} : broadcast(zero[unit]);
        for_each_vector(
            count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
              store_some(w + begin + i, decoded(code_from(load_codes(in + begin + i, n), range), s, z, range),
                         n);
            });
      });
    }
  });
}

void error(const Matrix& w, const uint8_t* in, const Step& step, const float* scale, const float* zero,
           const CodeRange& codes, double* sums) {
  with_type(w.type, [&](auto element) {
    with_range(codes, [&](auto range) {
      for (int64_t r = 0; r < step.rows; ++r, in += w.columns) {
        const auto* from = row_of<decltype(element)>(w, step.row + r);
        Floats error{}, size{};
        for_each_unit(w.columns, step.unit_columns, [&](int64_t unit, int64_t begin, int64_t count) {
          const Floats s = broadcast(scale[unit]), z = range.symmetric ? Floats{} : broadcast(zero[unit]);
          for_each_vector(
              count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
                const Floats x = keep_first(load_some(from + begin + i, n), n);
                const Floats e =
                    keep_first(decoded(code_from(load_codes(in + begin + i, n), range), s, z, range), n) - x;
                error += e * e;
                size += x * x;
              });
        });
        sums[0] += sum_double(error);
        sums[1] += sum_double(size);
      }
    });
  });
}

void pack(const int8_t* codes, int64_t count, int bits, uint32_t* words) {
  const int offset = 1 << (bits - 1);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t pending = 0;
  int64_t i = 0;
  int held = 0;
  if (bits <= 4) {
    const uint64_t in_bytes = mask * 0x0101010101010101u,
                   in_pairs = ((mask << bits) | mask) * 0x0001000100010001u;
    const uint64_t in_fours = ((uint64_t{1} << 4 * bits) - 1) * 0x0000000100000001u,
                   all = (uint64_t{1} << 8 * bits) - 1;
    const uint64_t sign = static_cast<uint64_t>(offset) * 0x0101010101010101u;
    for (; i + 8 <= count; i += 8) {
      // The low bits of eight bytes are drawn together in three steps.
      uint64_t x = (load_bytes<uint64_t>(codes + i) & in_bytes) ^ sign;
      x = (x | (x >> (8 - bits))) & in_pairs;
      x = (x | (x >> 2 * (8 - bits))) & in_fours;
      x = (x | (x >> 4 * (8 - bits))) & all;
      pending |= x << held;
      held += 8 * bits;
      if (held >= 32) {
        *words++ = static_cast<uint32_t>(pending);
        pending >>= 32;
        held -= 32;
      }
    }
  } else if (bits == 8) {
    for (; i + 4 <= count; i += 4, ++words) *words = load_bytes<uint32_t>(codes + i) ^ 0x80808080u;
  }
  for (; i < count; ++i) {
    pending |= (static_cast<uint64_t>(codes[i] + offset) & mask) << held;
    held += bits;
    if (held >= 32) {
      *words++ = static_cast<uint32_t>(pending);
      pending >>= 32;
      held -= 32;
    }
  }
  if (held > 0) *words = static_cast<uint32_t>(pending);
}

void pack_columns(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t stride,
                  uint32_t* scratch, uint32_t* words) {
  const int64_t length = (count * bits + 31) / 32;
  for (int64_t r = 0; r < rows; ++r) pack(codes + r * count, count, bits, scratch + r * length);
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t r = 0; r < rows; ++r) words[i * stride + r] = scratch[r * length + i];
  }
}

void pack_awq(const int8_t* codes, int64_t words, int64_t count, int64_t begin, int64_t end,
              uint32_t* packed) {
  constexpr int64_t kOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};  // position -> channel of its eight
  uint32_t tile[kLanes][kAwqColumns];
  for (int64_t column = begin; column < end; column += kAwqColumns) {
    const int64_t columns = smaller(kAwqColumns, end - column);
    for (int64_t first = 0; first < words; first += kLanes) {
      const int64_t tile_words = smaller(int64_t{kLanes}, words - first);
      for (int64_t w = 0; w < tile_words; ++w) {
        for_each_vector(
            columns, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
              Words word{};
              for (int64_t k = 0; k < 8; ++k) {
                const Bytes bytes = load_codes(reinterpret_cast<const uint8_t*>(codes) +
                                                   (8 * (first + w) + kOrder[k]) * count + column + i,
                                               n);
                word |= ((__builtin_convertvector(bytes, Words) & 15u) ^ 8u) << static_cast<uint32_t>(4 * k);
              }
              store_some(tile[w] + i, word, kLanes);
            });
      }
      for (int64_t i = 0; i < columns; ++i) {
        for (int64_t w = 0; w < tile_words; ++w) packed[(column + i) * words + first + w] = tile[w][i];
      }
    }
  }
}

// ---- n:m masks --------------------------------------------------------------------------------------------------------

template <class T>
void scores_of(const T* w, const float* importance, int64_t columns, float* score) {
  for_each_vector(
      columns, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        const Floats channel = importance ? load_some(importance + i, n) : broadcast(1);
        store_some(score + i, mask_score(load_some(w + i, n), channel), n);
      });
}

/// Every score is compared with its neighbours at each distance, where they belong to the same run.
void mask(const Matrix& w, int64_t row, const float* importance, int64_t keep, int64_t of, float* scratch,
          uint8_t* out) {
  float* const score = scratch + of;
  with_type(w.type,
            [&](auto type) { scores_of(row_of<decltype(type)>(w, row), importance, w.columns, score); });
  for (int64_t i = w.columns; i < w.columns + of + kLanes; ++i) score[i] = -1;  // behind everything
  int32_t position[kLongestRun + kLanes];
  for (int64_t i = 0; i < of + kLanes; ++i) position[i] = static_cast<int32_t>(i % of);
  for_each_vector(
      w.columns, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        const Floats mine = load(score + i);
        const Ints place = load_bytes<Ints>(position + i % of);
        Ints rank{};
        for (int64_t d = 1; d < of; ++d) {
          const auto distance = static_cast<int32_t>(d), run = static_cast<int32_t>(of);
          rank -= (load(score + i - d) >= mine) & (place >= distance);  // true is -1
          rank -= (load(score + i + d) > mine) & (place < run - distance);
        }
        const Ints kept = rank < static_cast<int32_t>(keep);
        store_some(out + i, Bytes(bit_cast<Bytes>(__builtin_convertvector(kept, SignedBytes)) & uint8_t{1}),
                   n);
      });
}

// ---- AWQ --------------------------------------------------------------------------------------------------------------

void scaled_error(const float* w, const float* s, int64_t columns, int64_t unit_columns,
                  const Shrink& options, const CodeRange& codes, Float scale_type, float* scratch,
                  float* delta) {
  float* const product = scratch;
  for_each_vector(columns, [&](int64_t i, int64_t n) {
    store_some(product + i, load_some(w + i, n) * load_some(s + i, n), n);
  });
  with_range(codes, [&](auto range) {
    for_each_unit(columns, unit_columns, [&](int64_t, int64_t begin, int64_t count) {
      float ends[2];
      const Matrix unit{product + begin, Float::kFloat, count, count};
      const Step step{0, 1, count};
      extremes_of<float>(unit, step, &ends[0], &ends[1]);
      Shrink shrinking = options;
      if (options.importance) shrinking.importance = options.importance + begin;
      if (options.steps > 0)
        shrink_units<float>(unit, step, shrinking, range, scale_type, &ends[0], &ends[1]);
      const ScaleZero<float> p = params_of(ends[0], ends[1], range, scale_type);
      const Floats scale = broadcast(p.scale), zero = broadcast(p.zero);
      for_each_vector(
          count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            const Floats x = load_some(product + begin + i, n);
            const Floats rounded =
                decoded(code_value(x, scale, zero, range, Float::kFloat), scale, zero, range);
            store_some(delta + begin + i, rounded / load_some(s + begin + i, n) - load_some(w + begin + i, n),
                       n);
          });
    });
  });
}

/// Rows become lanes: to[c] holds column c of all rows; lanes beyond the last row repeat the first.
SLIM_KERNEL void load_lanes(const float* from, int64_t stride, int64_t rows, int64_t columns, Floats* to) {
  int64_t c = 0;
#if defined(__AVX512F__)
  for (; c + kLanes <= columns; c += kLanes) {
    for (int64_t r = 0; r < kLanes; ++r) to[c + r] = load(from + (r < rows ? r : 0) * stride + c);
    transpose(to + c);
  }
#endif
  for (int64_t r = 0; r < kLanes; ++r) {
    const float* const row = from + (r < rows ? r : 0) * stride;
    for (int64_t i = c; i < columns; ++i) reinterpret_cast<float*>(to + i)[r] = row[i];
  }
}

constexpr int64_t kPassColumns = kPanelColumns;  ///< columns that one pass keeps in registers
static_assert(kSearchRows % kLanes == 0);

/// f(rows) for as many rows at a time as there are lanes.
template <class F>
inline void for_each_lanes(const SearchRows& all, F&& f) {
  for (int64_t row = 0; row < all.rows; row += kLanes) {
    SearchRows rows = all;
    rows.weight += row * rows.weight_stride;
    if (rows.coupling) rows.coupling += row * rows.coupling_stride;
    rows.low += row;
    rows.high += row;
    rows.rows = smaller(kLanes, all.rows - row);
    f(rows);
  }
}

/// sums[q] = start[q] + sign * Σ x_k m_kq for k in [0, count) and the columns q of one pass; m: a panel's rows, from the pass's first column on.
template <bool kSubtract>
SLIM_KERNEL void multiply_panel(const Floats* x, const float* m, int64_t count, Floats* sums) {
  Floats total[kPassColumns];
  for (int64_t q = 0; q < kPassColumns; ++q) total[q] = sums[q];
  for (int64_t k = 0; k < count; ++k) {
    const Floats mine = kSubtract ? -x[k] : x[k];
    for (int64_t q = 0; q < kPassColumns; ++q)
      total[q] = multiply_add(mine, broadcast(m[k * kPanelColumns + q]), total[q]);
  }
  for (int64_t q = 0; q < kPassColumns; ++q) sums[q] = total[q];
}

/// What both searches know of their rows: weights and extremes, by lane.
struct LaneRows {
  explicit LaneRows(const SearchRows& rows, int64_t columns) {
    load_lanes(rows.weight, rows.weight_stride, rows.rows, columns, w);
    for (int64_t c = 0; c < columns; ++c) {
      min = w[c] < min ? w[c] : min;
      max = w[c] > max ? w[c] : max;
    }
  }
  void store_ends(const SearchRows& rows, Floats low, Floats high) const {
    store_some(rows.low, Floats(min * low), rows.rows);
    store_some(rows.high, Floats(max * high), rows.rows);
  }
  Floats w[kLargestGroup], min{}, max{};
};

/// Error of a candidate of each row of one group.
template <class Range>
class GroupError {
 public:
  GroupError(const GroupSearch& search, const SearchRows& rows, const Range& range, Float scale_type)
      : search_(search),
        range_(range),
        scale_type_(scale_type),
        rows_(rows, search.group),
        coupled_(rows.coupling) {
    if (coupled_) load_lanes(rows.coupling, rows.coupling_stride, rows.rows, search.group, coupling_);
  }

  Floats operator()(Floats low, Floats high) {
    const ScaleZero<Floats> p =
        params_of(Floats(rows_.min * low), Floats(rows_.max * high), range_, scale_type_);
    for (int64_t c = 0; c < search_.group; ++c) {
      const Floats x = rows_.w[c];
      delta_[c] = decoded(code_value(x, p.scale, p.zero, range_, Float::kFloat), p.scale, p.zero, range_) - x;
    }
    Floats error{};
    for (int64_t c = 0; c < search_.group; c += kPassColumns) {
      const int64_t panel = c / kPanelColumns;
      const float* const m = search_.triangle + panel * search_.group * kPanelColumns + c % kPanelColumns;
      Floats products[kPassColumns];
      for (int64_t q = 0; q < kPassColumns; ++q)
        products[q] = coupled_ ? coupling_[c + q] + coupling_[c + q] : Floats{};
      multiply_panel<false>(delta_, m, c + kPassColumns, products);
      for (int64_t q = 0; q < kPassColumns; ++q) error = multiply_add(products[q], delta_[c + q], error);
    }
    return error;
  }

  void store(const SearchRows& rows, Floats low, Floats high) const { rows_.store_ends(rows, low, high); }

 private:
  const GroupSearch& search_;
  const Range& range_;
  Float scale_type_;
  LaneRows rows_;
  bool coupled_;
  Floats coupling_[kLargestGroup], delta_[kLargestGroup];
};

template <class Range>
void search_group(const GroupSearch& search, const SearchRows& rows, const Range& range, Float scale_type) {
  GroupError<Range> error(search, rows, range, scale_type);
  Floats low, high;
  search_factors(range, rows.coupling != nullptr, error, low, high);
  error.store(rows, low, high);
}

void gram_ranges(const GroupSearch& search, const SearchRows& rows, const CodeRange& codes,
                 Float scale_type) {
  with_range(codes, [&](auto range) {
    for_each_lanes(rows, [&](const SearchRows& part) { search_group(search, part, range, scale_type); });
  });
}

/// Loss of a candidate of each row when its columns are swept. Given up where no row can be the best any more.
template <class Range>
class SweepLoss {
 public:
  SweepLoss(const SweepSearch& search, const SearchRows& rows, const Range& range, Float scale_type)
      : search_(search), range_(range), scale_type_(scale_type), rows_(rows, search.columns) {}

  Floats operator()(Floats low, Floats high) {
    const ScaleZero<Floats> p =
        params_of(Floats(rows_.min * low), Floats(rows_.max * high), range_, scale_type_);
    const Floats reciprocal = 1.0F / p.scale;
    Floats loss{};
    for (int64_t c = 0; c < search_.columns; c += kPassColumns) {
      const int64_t count = smaller(kPassColumns, search_.columns - c), panel = c / kPanelColumns;
      const float* const m = search_.factor + panel * search_.columns * kPanelColumns + c % kPanelColumns;
      Floats w[kPassColumns];
      for (int64_t q = 0; q < kPassColumns; ++q) w[q] = rows_.w[c + (q < count ? q : 0)];
      multiply_panel<true>(error_, m, c, w);
      for (int64_t q = 0; q < count; ++q) {
        for (int64_t k = 0; k < q; ++k)
          w[q] = multiply_add(-error_[c + k], broadcast(m[(c + k) * kPanelColumns + q]), w[q]);
        const Floats shifted = range_.symmetric ? w[q] * reciprocal : w[q] * reciprocal + p.zero;
        const Floats code = round_even(clamp(shifted, range_.min, range_.max));
        error_[c + q] = (w[q] - decoded(code, p.scale, p.zero, range_)) * search_.reciprocal[c + q];
        loss = multiply_add(error_[c + q], error_[c + q], loss);
      }
      if ((c & kCheckedColumns) == kCheckedColumns && worse_everywhere(loss)) return loss;
    }
    least_ = (first_ | (loss < least_)) ? loss : least_;
    first_ = Floats{} != 0.0F;
    return loss;
  }

  void store(const SearchRows& rows, Floats low, Floats high) const { rows_.store_ends(rows, low, high); }

 private:
  static constexpr int64_t kCheckedColumns = 24;  // looked at once in 32 columns

  bool worse_everywhere(Floats loss) const {
    return !(largest((first_ | (loss < least_)) ? broadcast(1) : Floats{}) > 0);
  }

  const SweepSearch& search_;
  const Range& range_;
  Float scale_type_;
  LaneRows rows_;
  Floats error_[kLargestGroup + kPassColumns], least_{};
  Ints first_ = Floats{} == 0.0F;  // all lanes, until a loss is known
};

template <class Range>
void search_sweep(const SweepSearch& search, const SearchRows& rows, const Range& range, Float scale_type) {
  constexpr double kStep = 0.05, kMoves[] = {-4 * kStep, -2 * kStep, -kStep, kStep, 2 * kStep};
  SweepLoss<Range> loss(search, rows, range, scale_type);
  FactorSearch<Floats, SweepLoss<Range>> factors(loss);
  for (double ratio = smaller(widest_factor(range), 1.5); ratio > search.least; ratio -= kStep)
    factors.try_both(ratio);
  if (!range.symmetric) {
    for (const double move : kMoves)
      factors.keep_if_better(clamp(Floats(factors.low + static_cast<float>(move)), 0, 1), factors.high);
    for (const double move : kMoves)
      factors.keep_if_better(factors.low, clamp(Floats(factors.high + static_cast<float>(move)), 0, 1));
  }
  loss.store(rows, factors.low, factors.high);
}

void sweep_ranges(const SweepSearch& search, const SearchRows& rows, const CodeRange& codes,
                  Float scale_type) {
  with_range(codes, [&](auto range) {
    for_each_lanes(rows, [&](const SearchRows& part) { search_sweep(search, part, range, scale_type); });
  });
}

// ---- activations ------------------------------------------------------------------------------------------------------

/// Sums of this many rows are added up at a time, which bounds the error of long sums.
constexpr int64_t kMomentRows = 1024;

template <int kVectors, class T>
SLIM_KERNEL void moments_of_columns(const Matrix& x, int64_t begin_row, int64_t end_row, int64_t column,
                                    int64_t count, float* sum_abs, float* sum_square, float* min,
                                    float* max) {
  Floats abs[kVectors] = {}, square[kVectors] = {}, low[kVectors], high[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    low[v] = load_some(min + column + v * kLanes, count);
    high[v] = load_some(max + column + v * kLanes, count);
  }
  for (int64_t r = begin_row; r < end_row; ++r) {
    const T* row = row_of<T>(x, r) + column;
    for (int v = 0; v < kVectors; ++v) {
      const Floats value = load_some(row + v * kLanes, count);
      abs[v] += value < 0.0F ? -value : value;
      square[v] += value * value;
      low[v] = ((value >= low[v]) | (low[v] != low[v])) ? low[v] : value;  // NaN wins and stays, as in ATen
      high[v] = ((value <= high[v]) | (high[v] != high[v])) ? high[v] : value;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = column + v * kLanes;
    store_some(sum_abs + at, Floats(load_some(sum_abs + at, count) + abs[v]), count);
    store_some(sum_square + at, Floats(load_some(sum_square + at, count) + square[v]), count);
    store_some(min + at, low[v], count);
    store_some(max + at, high[v], count);
  }
}

template <class T>
void moments_of(const Matrix& x, int64_t rows, int64_t begin, int64_t end, float* sum_abs, float* sum_square,
                float* min, float* max) {
  constexpr int64_t kWide = 4 * kLanes;
  for (int64_t r = 0; r < rows; r += kMomentRows) {
    const int64_t last = smaller(r + kMomentRows, rows);
    int64_t c = begin;
    for (; c + kWide <= end; c += kWide)
      moments_of_columns<4, T>(x, r, last, c, kLanes, sum_abs, sum_square, min, max);
    for (; c < end; c += kLanes)
      moments_of_columns<1, T>(x, r, last, c, smaller(kLanes, end - c), sum_abs, sum_square, min, max);
  }
}

void moments(const Matrix& x, int64_t rows, int64_t begin, int64_t end, float* sum_abs, float* sum_square,
             float* min, float* max) {
  with_type(x.type, [&](auto type) {
    moments_of<decltype(type)>(x, rows, begin, end, sum_abs, sum_square, min, max);
  });
}

template <class T>
void histogram_of(const Matrix& x, int64_t begin, int64_t end, float per_bin, int64_t bins_per_side,
                  uint32_t* counts, float* ends) {
  const Floats first = load_some(row_of<T>(x, begin), x.columns);
  Extremes e{first, first, Words{}};
  uint32_t* const middle = counts + bins_per_side;
  for (int64_t r = begin; r < end; ++r) {
    const T* const row = row_of<T>(x, r);
    for_each_vector(
        x.columns, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
          const Floats v = load_some(row + i, n);
          widen(e, v);
          const Ints bin = bin_of(v, per_bin, static_cast<float>(bins_per_side));
          for (int64_t k = 0; k < n; ++k) ++middle[k % kHistogramTables * 2 * bins_per_side + bin[k]];
        });
  }
  finish(e, ends[0], ends[1]);
}

void histogram(const Matrix& x, int64_t begin, int64_t end, float per_bin, int64_t bins_per_side,
               uint32_t* counts, float* ends) {
  with_type(x.type, [&](auto type) {
    histogram_of<decltype(type)>(x, begin, end, per_bin, bins_per_side, counts, ends);
  });
}

// ---- the column sweep -------------------------------------------------------------------------------------------------

/// Rows are the lanes: a tile holds two vectors of rows, column by column. Columns are taken in panels, for which the errors of
/// all earlier columns are subtracted with the panel in registers. Sums are in the columns' order, as in the reference.
constexpr int64_t kTileVectors = 2, kTileRows = kTileVectors * kLanes;
constexpr int64_t kPanel = kLanes == 16 ? 8 : 4;  // with 32 registers, or 16

struct Pair {
  Floats v[kTileVectors];
};

size_t sweep_scratch(const Sweep& sweep) {
  const int64_t pairs = 3 * sweep.columns + 2 * sweep.groups + 2 * sweep.of;
  constexpr int64_t kAlignment = 16;  // floats of a cache line
  return static_cast<size_t>(pairs * kTileRows + kAlignment);
}

class Tile {
 public:
  Tile(const Sweep& sweep, float* scratch) : sweep_(sweep) {
    const auto address = reinterpret_cast<uintptr_t>(scratch);
    Pair* const next = reinterpret_cast<Pair*>((address + 63) / 64 * 64);
    weight_ = next;
    error_ = weight_ + sweep.columns;
    code_ = error_ + sweep.columns;
    scale_ = code_ + sweep.columns;
    zero_ = scale_ + sweep.groups;
    salience_ = zero_ + sweep.groups;
    kept_ = salience_ + sweep.of;
  }

  void load(const SweepRows& rows, int64_t first, int64_t count) {
    const int64_t done = load_blocks(rows, first, count);
    for (int64_t lane = 0; lane < kTileRows; ++lane) {
      const int64_t row = row_of_lane(first, lane, count);
      const float* from = rows.weight + row * rows.weight_stride;
      for (int64_t c = done; c < sweep_.columns; ++c) at(weight_[c], lane) = from[c];
      for (int64_t g = 0; g < sweep_.groups; ++g) {
        const int64_t entry = (rows.row + row) * sweep_.groups + g;
        at(scale_[g], lane) = sweep_.scale[entry];
        at(zero_[g], lane) = sweep_.zero ? sweep_.zero[entry] : 0.0F;
      }
    }
  }

  void run() {
    const int64_t run_length = sweep_.of > 0 ? sweep_.of : 1;
    for (int64_t begin = 0; begin < sweep_.columns; begin += panel_columns()) {
      const int64_t end = smaller(begin + panel_columns(), sweep_.columns);
      for (int64_t i = begin; i < end; i += kPanel) subtract_earlier(i, smaller(i + kPanel, end), begin);
      for (int64_t run = begin; run < end; run += run_length) {
        const int64_t last = smaller(run + run_length, end);
        for (int64_t i = run; i < last; ++i) subtract(i, begin, run);
        if (sweep_.of > 0) choose_kept(run, last);
        for (int64_t i = run; i < last; ++i) {
          subtract(i, run, i);
          for (int v = 0; v < kTileVectors; ++v)
            settle(i, v, sweep_.of > 0 ? kept_[i - run].v[v] : broadcast(1));
        }
      }
    }
  }

  void store(const SweepRows& rows, int64_t first, int64_t count) const {
    const int64_t done = store_blocks(rows, first, count);
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t row = first + lane;
      float* weight = rows.weight + row * rows.weight_stride;
      float* errors = rows.errors + row * rows.errors_stride;
      for (int64_t c = done; c < sweep_.columns; ++c) weight[c] = at(weight_[c], lane);
      for (int64_t c = done; c < sweep_.columns; ++c) errors[c] = at(error_[c], lane);
      if (!sweep_.scale) continue;
      int8_t* codes = rows.codes + row * rows.codes_stride;
      for (int64_t c = done; c < sweep_.columns; ++c) codes[c] = static_cast<int8_t>(at(code_[c], lane));
    }
  }

 private:
  /// Lanes beyond the last row repeat it.
  static int64_t row_of_lane(int64_t first, int64_t lane, int64_t count) {
    return first + (lane < count ? lane : count - 1);
  }

#if defined(__AVX512F__)
  int64_t load_blocks(const SweepRows& rows, int64_t first, int64_t count) {
    int64_t c = 0;
    for (; c + kLanes <= sweep_.columns; c += kLanes) {
      for (int v = 0; v < kTileVectors; ++v) {
        Floats block[kLanes];
        for (int64_t r = 0; r < kLanes; ++r) {
          block[r] = slim::kernels::load(rows.weight +
                                         row_of_lane(first, v * kLanes + r, count) * rows.weight_stride + c);
        }
        transpose(block);
        for (int64_t k = 0; k < kLanes; ++k) weight_[c + k].v[v] = block[k];
      }
    }
    return c;
  }

  /// f(row, its numbers in the columns [c, c + kLanes)) for the rows of one vector of lanes.
  template <class F>
  SLIM_KERNEL static void for_each_block_row(const Pair* columns, int64_t c, int v, int64_t count, F&& f) {
    Floats block[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) block[k] = columns[c + k].v[v];
    transpose(block);
    for (int64_t r = 0; r < kLanes && v * kLanes + r < count; ++r) f(v * kLanes + r, block[r]);
  }

  int64_t store_blocks(const SweepRows& rows, int64_t first, int64_t count) const {
    int64_t c = 0;
    for (; c + kLanes <= sweep_.columns; c += kLanes) {
      for (int v = 0; v < kTileVectors; ++v) {
        for_each_block_row(
            weight_, c, v, count, [&](int64_t lane, Floats w) __attribute__((always_inline)) {
              slim::kernels::store(rows.weight + (first + lane) * rows.weight_stride + c, w);
            });
        for_each_block_row(
            error_, c, v, count, [&](int64_t lane, Floats e) __attribute__((always_inline)) {
              slim::kernels::store(rows.errors + (first + lane) * rows.errors_stride + c, e);
            });
        if (!sweep_.scale) continue;
        for_each_block_row(
            code_, c, v, count, [&](int64_t lane, Floats code) __attribute__((always_inline)) {
              const SignedBytes bytes =
                  __builtin_convertvector(__builtin_convertvector(code, Ints), SignedBytes);
              store_some(rows.codes + (first + lane) * rows.codes_stride + c, bytes, kLanes);
            });
      }
    }
    return c;
  }
#else
  // Without permutations of 16 numbers, moving them one by one is faster.
  int64_t load_blocks(const SweepRows&, int64_t, int64_t) { return 0; }
  int64_t store_blocks(const SweepRows&, int64_t, int64_t) const { return 0; }
#endif

  static float& at(Pair& pair, int64_t lane) { return reinterpret_cast<float*>(&pair)[lane]; }
  static float at(const Pair& pair, int64_t lane) { return reinterpret_cast<const float*>(&pair)[lane]; }
  const float* factor(int64_t i) const { return sweep_.factor + i * sweep_.columns; }
  /// Whole runs.
  int64_t panel_columns() const {
    if (sweep_.of == 0) return kPanel;
    return sweep_.of >= kPanel ? sweep_.of : kPanel / sweep_.of * sweep_.of;
  }

  /// w_i -= Σ e_k U_ki over the columns k < `before`, for the columns [begin, end) of a panel.
  void subtract_earlier(int64_t begin, int64_t end, int64_t before) {
    if (end - begin < kPanel) {
      for (int64_t i = begin; i < end; ++i) subtract(i, 0, before);
      return;
    }
    Pair w[kPanel];
    memcpy(w, weight_ + begin, sizeof w);
    const float* u = factor(begin);
    for (int64_t k = 0; k < before; ++k) {
      const Pair error = error_[k];
      for (int64_t i = 0; i < kPanel; ++i) {
        const Floats entry = broadcast(u[i * sweep_.columns + k]);
        for (int v = 0; v < kTileVectors; ++v) w[i].v[v] -= error.v[v] * entry;
      }
    }
    memcpy(weight_ + begin, w, sizeof w);
  }

  void subtract(int64_t i, int64_t from, int64_t to) {
    Pair w = weight_[i];
    for (int64_t k = from; k < to; ++k) {
      const Floats entry = broadcast(factor(i)[k]);
      for (int v = 0; v < kTileVectors; ++v) w.v[v] -= error_[k].v[v] * entry;
    }
    weight_[i] = w;
  }

  void choose_kept(int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    for (int64_t c = 0; c < count; ++c) {
      for (int v = 0; v < kTileVectors; ++v) {
        const Floats ratio = weight_[begin + c].v[v] / broadcast(factor(begin + c)[begin + c]);
        salience_[c].v[v] = ratio * ratio;
      }
    }
    for (int64_t c = 0; c < count; ++c) {  // kept: fewer than `keep` columns rank before it
      for (int v = 0; v < kTileVectors; ++v) {
        Floats rank{};
        const Floats mine = salience_[c].v[v];
        for (int64_t other = 0; other < count; ++other) {
          const Floats its = salience_[other].v[v];
          const Ints before = other < c ? its >= mine : its > mine;
          rank += before ? broadcast(1) : Floats{};
        }
        kept_[c].v[v] = rank < static_cast<float>(sweep_.keep) ? broadcast(1) : Floats{};
      }
    }
  }

  /// Gives column i its final value, and remembers what that costs the columns after it.
  void settle(int64_t i, int v, Floats kept) {
    const Floats w = weight_[i].v[v];
    Floats value = kept != 0.0F ? w : Floats{};
    if (sweep_.scale) {
      const Floats scale = scale_[sweep_.group[i]].v[v], zero = zero_[sweep_.group[i]].v[v];
      const Floats rounded = round_even(clamp(Floats(w / scale + zero), sweep_.min_code, sweep_.max_code));
      const Floats code = kept != 0.0F ? rounded : zero;
      code_[i].v[v] = code;
      value = (code - zero) * scale;
    }
    error_[i].v[v] = (w - value) / broadcast(factor(i)[i]);
    weight_[i].v[v] = value;
  }

  const Sweep& sweep_;
  Pair *weight_, *error_, *code_;            // by column
  Pair *scale_, *zero_, *salience_, *kept_;  // by group; by column of a run
};

void sweep(const Sweep& sweep, const SweepRows& rows, float* scratch) {
  Tile tile(sweep, scratch);
  for (int64_t first = 0; first < rows.rows; first += kTileRows) {
    const int64_t count = smaller(kTileRows, rows.rows - first);
    tile.load(rows, first, count);
    tile.run();
    tile.store(rows, first, count);
  }
}

}  // namespace

const Kernels& SLIM_KERNELS() {
  static constexpr Kernels kernels = {SLIM_KERNELS_NAME,
                                      extremes,
                                      params,
                                      shrink,
                                      shared_error,
                                      encode,
                                      decode,
                                      error,
                                      scaled_error,
                                      gram_ranges,
                                      sweep_ranges,
                                      moments,
                                      histogram,
                                      pack,
                                      pack_columns,
                                      pack_awq,
                                      mask,
                                      sweep,
                                      sweep_scratch};
  return kernels;
}

}  // namespace slim::kernels
