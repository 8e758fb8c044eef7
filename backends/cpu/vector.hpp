#pragma once
#include "common/arithmetic.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/// Vectors of 16 floats with the compiler's operators. The same source becomes one AVX-512 register, two AVX2 registers or four of
/// the portable version, by the flags of the file that includes it.
namespace slim::kernels {

constexpr int64_t kLanes = 16;
typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int8_t B16 __attribute__((vector_size(16)));
typedef uint8_t UB16 __attribute__((vector_size(16)));

template <>
struct Bits<F16> {
  using Int = I16;
  using Unsigned = U16;
  SLIM_KERNEL static I16 truncated(F16 x) { return __builtin_convertvector(x, I16); }
  SLIM_KERNEL static F16 from(I16 x) { return __builtin_convertvector(x, F16); }
};

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

SLIM_KERNEL F16 broadcast(float x) { return F16{} + x; }

template <class V, class T>
SLIM_KERNEL V load_bytes(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}
SLIM_KERNEL F16 load(const float* from) { return load_bytes<F16>(from); }
SLIM_KERNEL F16 load(const BFloat16* from) {
  return from_bfloat16<F16>(__builtin_convertvector(load_bytes<H16>(from), U16));
}
SLIM_KERNEL F16 load(const Half* from) {
  return from_half<F16>(__builtin_convertvector(load_bytes<H16>(from), U16));
}
SLIM_KERNEL void store(float* to, F16 v) { memcpy(to, &v, sizeof v); }

/// The first `count` elements; the other lanes repeat the first, which changes no extreme.
template <class T>
SLIM_KERNEL F16 load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T buffer[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) buffer[i] = from[i < count ? i : 0];
  return load(buffer);
}
template <class T, class V>
SLIM_KERNEL void store_some(T* to, V v, int64_t count) {
  memcpy(to, &v, static_cast<size_t>(count >= kLanes ? kLanes : count) * sizeof(T));
}

/// a * b + c, contracted where the processor can; only for sums that have no reference bit for bit.
SLIM_KERNEL F16 multiply_add(F16 a, F16 b, F16 c) {
#if defined(__AVX512F__)
  return (F16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  struct Halves {
    __m256 low, high;
  };
  const Halves x = bit_cast<Halves>(a), y = bit_cast<Halves>(b), z = bit_cast<Halves>(c);
  return bit_cast<F16>(Halves{_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)});
#else
  return a * b + c;
#endif
}

#if defined(__FMA__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

SLIM_KERNEL float sum(F16 v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}
SLIM_KERNEL double sum_double(F16 v) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += static_cast<double>(v[i]);
  return total;
}
/// Lane i becomes combine(lane i, lane i + 8), then with 4, 2 and 1: lane 0 is that of all lanes.
template <class F>
SLIM_KERNEL float reduce(F16 v, F&& combine) {
  v = combine(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = combine(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = combine(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = combine(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}
SLIM_KERNEL float largest(F16 v) {
  return reduce(
      v, [](F16 a, F16 b) __attribute__((always_inline)) { return a > b ? a : b; });
}
SLIM_KERNEL float smallest(F16 v) {
  return reduce(
      v, [](F16 a, F16 b) __attribute__((always_inline)) { return a < b ? a : b; });
}

/// The first `count` lanes of v, the others 0.
SLIM_KERNEL F16 keep_first(F16 v, int64_t count) {
  constexpr I16 kIndex = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return kIndex < static_cast<int32_t>(count) ? v : F16{};
}

#if defined(__AVX512F__)
/// Lane of the pair (a, b), b's counted from 16, that the exchange at distance kD puts into `lane` of a or of b.
template <int kD>
constexpr int into_first(int lane) {
  return lane & kD ? kLanes + lane - kD : lane;
}
template <int kD>
constexpr int into_second(int lane) {
  return lane & kD ? kLanes + lane : lane + kD;
}
template <int kD>
SLIM_KERNEL void exchange(F16* rows) {
  constexpr I16 kFirst = {into_first<kD>(0),  into_first<kD>(1),  into_first<kD>(2),  into_first<kD>(3),
                          into_first<kD>(4),  into_first<kD>(5),  into_first<kD>(6),  into_first<kD>(7),
                          into_first<kD>(8),  into_first<kD>(9),  into_first<kD>(10), into_first<kD>(11),
                          into_first<kD>(12), into_first<kD>(13), into_first<kD>(14), into_first<kD>(15)};
  constexpr I16 kSecond = {
      into_second<kD>(0),  into_second<kD>(1),  into_second<kD>(2),  into_second<kD>(3),
      into_second<kD>(4),  into_second<kD>(5),  into_second<kD>(6),  into_second<kD>(7),
      into_second<kD>(8),  into_second<kD>(9),  into_second<kD>(10), into_second<kD>(11),
      into_second<kD>(12), into_second<kD>(13), into_second<kD>(14), into_second<kD>(15)};
  for (int i = 0; i < kLanes; ++i) {
    if (i & kD) continue;
    const __m512 a = (__m512)rows[i], b = (__m512)rows[i + kD];
    rows[i] = (F16)_mm512_permutex2var_ps(a, (__m512i)kFirst, b);
    rows[i + kD] = (F16)_mm512_permutex2var_ps(a, (__m512i)kSecond, b);
  }
}
/// 16 rows of 16 numbers become columns.
SLIM_KERNEL void transpose(F16* rows) {
  exchange<1>(rows);
  exchange<2>(rows);
  exchange<4>(rows);
  exchange<8>(rows);
}
#endif

}  // namespace slim::kernels
