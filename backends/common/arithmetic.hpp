#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SLIM_KERNEL __host__ __device__ inline
#else
#define SLIM_KERNEL inline __attribute__((always_inline))
#endif

/// What a kernel does to one element, in the order of operations of the core's reference (core/src/quant): the same source serves
/// a CUDA thread (F = float) and the CPU's vectors (F = a vector of floats, see backends/cpu/vector.hpp). The results are the same
/// bits, as long as the compiler contracts no product and sum.
namespace slim::kernels {

enum class Float : uint8_t { kFloat, kBFloat16, kHalf };

/// How codes look. E4M3 is symmetric, with codes from -448 to 448.
struct CodeRange {
  float min = 0, max = 0;
  bool is_e4m3 = false, symmetric = true;
};
/// The same, where the compiler knows the kind of codes.
template <bool kIsE4m3, bool kSymmetric>
struct FixedCodeRange {
  float min = 0, max = 0;
  static constexpr bool is_e4m3 = kIsE4m3, symmetric = kSymmetric;
};

template <class F>
struct Bits;  // the integer type of a float type's bits
template <>
struct Bits<float> {
  using Int = int32_t;
  using Unsigned = uint32_t;
  SLIM_KERNEL static Int truncated(float x) { return static_cast<Int>(x); }
  SLIM_KERNEL static float from(Int x) { return static_cast<float>(x); }
};

template <class To, class From>
SLIM_KERNEL To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class F>
SLIM_KERNEL F larger(F a, F b) {
  return a > b ? a : b;
}
template <class F>
SLIM_KERNEL F smaller(F a, F b) {
  return a < b ? a : b;
}
/// NaN stays NaN.
template <class F>
SLIM_KERNEL F clamp(F x, float low, float high) {
  x = x < low ? F{} + low : x;
  return x > high ? F{} + high : x;
}

/// |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction, and rounds ties to even.
template <class F>
SLIM_KERNEL F round_even(F x) {
  return (x + 12582912.0F) - 12582912.0F;
}

/// Nearest bfloat16, ties to even; Inf stays. Not for NaN.
template <class F>
SLIM_KERNEL F round_to_bfloat16(F x) {
  using U = typename Bits<F>::Unsigned;
  const U bits = bit_cast<U>(x);
  return bit_cast<F>((bits + ((bits >> 16) & 1u) + 0x7fffu) & 0xffff0000u);
}

/// Nearest fp16, ties to even, Inf beyond 65504. Not for NaN.
template <class F>
SLIM_KERNEL F round_to_half(F x) {
  using U = typename Bits<F>::Unsigned;
  const U bits = bit_cast<U>(x), sign = bits & 0x80000000u, size = bits & 0x7fffffffu;
  const U rounded = (size + ((size >> 13) & 1u) + 0xfffu) & 0xffffe000u;
  // Below 2^-14 the steps are 2^-24 wide, as those of a float between a half and one.
  const F small = (bit_cast<F>(size) + 0.5F) - 0.5F;
  const U normal = rounded >= 0x47800000u ? (rounded & 0u) + 0x7f800000u : rounded;
  const U magnitude = size < 0x38800000u ? bit_cast<U>(small) : normal;
  return bit_cast<F>(magnitude | sign);
}

/// Bin of a value, counted from zero: floor(x * per_bin) in [-bins, bins - 1]. NaN falls into the first.
template <class F>
SLIM_KERNEL typename Bits<F>::Int bin_of(F x, float per_bin, float bins) {
  using I = typename Bits<F>::Int;
  F at = x * per_bin;
  at = at >= -bins ? at : F{} - bins;
  at = at <= bins - 1 ? at : F{} + (bins - 1);
  const I bin = Bits<F>::truncated(at);
  return Bits<F>::from(bin) > at ? bin - 1 : bin;
}

/// What sparsity_mask compares: |w| * importance, NaN as Inf.
template <class F>
SLIM_KERNEL F mask_score(F w, F importance) {
  const F score = (w < 0.0F ? -w : w) * importance;
  return score != score ? F{} + bit_cast<float>(0x7f800000u) : score;
}

template <class F>
SLIM_KERNEL F rounded_to(F x, Float type) {
  if (type == Float::kBFloat16) return round_to_bfloat16(x);
  if (type == Float::kHalf) return round_to_half(x);
  return x;
}

/// bfloat16 and fp16 bits (zero extended) as a float.
template <class F>
SLIM_KERNEL F from_bfloat16(typename Bits<F>::Unsigned bits) {
  return bit_cast<F>(bits << 16);
}
template <class F>
SLIM_KERNEL F from_half(typename Bits<F>::Unsigned bits) {
  using U = typename Bits<F>::Unsigned;
  const U size = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
  // The exponent's bias grows by 112; a product makes subnormal numbers right too.
  const U finite = bit_cast<U>(bit_cast<F>(size << 13) * 5.192296858534828e33F);
  const U magnitude = size >= 0x7c00u ? ((size << 13) | 0x7f800000u) : finite;
  return bit_cast<F>(magnitude | sign);
}

/// E4M3 byte of x, |x| <= 448: nearest, ties to even.
template <class F>
SLIM_KERNEL typename Bits<F>::Unsigned e4m3_from_float(F x) {
  using U = typename Bits<F>::Unsigned;
  const U bits = bit_cast<U>(x), sign = (bits >> 24) & 0x80u, size = bits & 0x7fffffffu;
  const U normal = ((size + ((size >> 20) & 1u) + 0x7ffffu) >> 20) - 960u;  // bias 127 becomes 7
  // Below 2^-6 the steps are 2^-9 wide, as those of a float from 2^14 on.
  const U subnormal = bit_cast<U>(bit_cast<F>(size) + 16384.0F) - 0x46800000u;
  return (size < 0x3c800000u ? subnormal : normal) | sign;
}
/// The value of an E4M3 byte that is not NaN.
template <class F>
SLIM_KERNEL F e4m3_to_float(typename Bits<F>::Unsigned byte) {
  using U = typename Bits<F>::Unsigned;
  const U size = byte & 0x7fu, sign = (byte & 0x80u) << 24;
  const F magnitude =
      bit_cast<F>(size << 20) * 1.329227995784916e36F;  // 2^120, right for subnormal numbers too
  return bit_cast<F>(bit_cast<U>(magnitude) | sign);
}

/// quotient + zero, inside the codes, not yet rounded to one.
template <class F, class Range>
SLIM_KERNEL F shifted(F quotient, F zero, const Range& range, Float arithmetic) {
  F x = rounded_to(quotient, arithmetic);
  if (!range.symmetric) x = rounded_to(F(x + zero), arithmetic);
  return clamp(x, range.min, range.max);
}
/// w / scale + zero, as shifted() has it.
template <class F, class Range>
SLIM_KERNEL F scaled(F w, F scale, F zero, const Range& range, Float arithmetic) {
  return shifted(F(w / scale), zero, range, arithmetic);
}
/// The code, as a number.
template <class F, class Range>
SLIM_KERNEL F code_value(F w, F scale, F zero, const Range& range, Float arithmetic) {
  const F x = scaled(w, scale, zero, range, arithmetic);
  return range.is_e4m3 ? e4m3_to_float<F>(e4m3_from_float(x)) : round_even(x);
}
template <class F, class Range>
SLIM_KERNEL F decoded(F code, F scale, F zero, const Range& range) {
  return range.symmetric ? code * scale : (code - zero) * scale;
}

/// Scale and zero point of a range, rounded as choose_params() of slim/quant.hpp says. NaN in either end gives a NaN scale.
template <class F>
struct ScaleZero {
  F scale, zero;
};
template <class F, class Range>
SLIM_KERNEL ScaleZero<F> params_of(F low, F high, const Range& range, Float scale_type) {
  const F nothing = low - low;  // 0; NaN of NaN or Inf
  const F min = rounded_to(F(low > 0.0F ? nothing : low), scale_type);
  const F max = rounded_to(F(high < 0.0F ? nothing : high), scale_type);
  const float codes = range.max - range.min;
  ScaleZero<F> params{nothing, nothing};
  if (range.symmetric) {
    params.scale = rounded_to(F(larger(F(-min), max) / (codes / 2)), scale_type);
  } else {
    params.scale = rounded_to(F(rounded_to(F(max - min), scale_type) / codes), scale_type);
  }
  params.scale = params.scale == 0.0F ? nothing + 1.0F : params.scale;
  if (!range.symmetric) {
    const F zero = rounded_to(F(range.min - rounded_to(F(min / params.scale), scale_type)), scale_type);
    params.zero = round_even(clamp(zero, range.min, range.max));
  }
  return params;
}

/// Keeps the pair of factors of least error among those that are tried. F: one group, or several side by side.
template <class F, class Error>
struct FactorSearch {
  Error& error;
  F low, high, best;

  SLIM_KERNEL explicit FactorSearch(Error& error_of) : error(error_of) {
    low = high = F{} + 1.0F;
    best = error(low, high);
  }
  SLIM_KERNEL void keep_if_better(F a, F b) {
    const F candidate = error(a, b);
    const auto better = candidate < best;
    best = better ? candidate : best;
    low = better ? a : low;
    high = better ? b : high;
  }
  SLIM_KERNEL void try_both(double ratio) {
    const F factor = F{} + static_cast<float>(ratio);
    keep_if_better(factor, factor);
  }
  /// Moves one end after the other, each from where it stood when its turn came.
  template <int kCount>
  SLIM_KERNEL void move_ends(const double (&moves)[kCount]) {
    const F one = F{} + 1.0F, start = low, end = high;
    for (const double move : moves) keep_if_better(smaller(F(start + static_cast<float>(move)), one), end);
    const F moved = low;
    for (const double move : moves) keep_if_better(moved, smaller(F(end + static_cast<float>(move)), one));
  }
};

/// 2^b codes lie unevenly around zero: a symmetric range a little wider than the extremes keeps the largest weight unclipped.
template <class Range>
SLIM_KERNEL double widest_factor(const Range& range) {
  return range.symmetric ? static_cast<double>(-range.min) / static_cast<double>(range.max) : 1;
}

/// The search of gram_ranges (slim/ops.hpp): factors of the extremes of least error(low, high). coupled: with the finer steps.
template <class F, class Range, class Error>
SLIM_KERNEL void search_factors(const Range& range, bool coupled, Error& error, F& low, F& high) {
  constexpr double kSmallest = 0.5, kStep = 0.025;
  FactorSearch<F, Error> search(error);
  for (double ratio = widest_factor(range); ratio >= kSmallest; ratio -= kStep) search.try_both(ratio);
  if (coupled) {
    const F less = search.low - static_cast<float>(kStep / 2),
            more = search.low + static_cast<float>(kStep / 2);
    search.keep_if_better(less, less);
    search.keep_if_better(more, more);
  }
  if (!range.symmetric && coupled) {
    constexpr double kMoves[] = {-4 * kStep, -2 * kStep, -kStep,    -kStep / 2,
                                 kStep / 2,  kStep,      2 * kStep, 4 * kStep};
    search.move_ends(kMoves);
  } else if (!range.symmetric) {
    constexpr double kMoves[] = {-4 * kStep, -2 * kStep, 2 * kStep, 4 * kStep};
    search.move_ends(kMoves);
  }
  low = search.low;
  high = search.high;
}

}  // namespace slim::kernels
