#pragma once
#include "common/arithmetic.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/// Vectors of kLanes floats with the compiler's operators: one register of the instruction set whose flags the including file has. (A vector
/// of several registers would live in memory, and every operator would load and store it.)
namespace slim::kernels {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t SignedBytes __attribute__((vector_size(kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

template <>
struct Bits<Floats> {
  using Int = Ints;
  using Unsigned = Words;
  SLIM_KERNEL static Ints truncated(Floats x) { return __builtin_convertvector(x, Ints); }
  SLIM_KERNEL static Floats from(Ints x) { return __builtin_convertvector(x, Floats); }
};

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

/// A load that fills all lanes, where x is in memory. (A sum with zeros would be an addition.)
SLIM_KERNEL Floats broadcast(float x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Floats)_mm256_set1_ps(x);
#else
  return Floats{x, x, x, x};
#endif
}

template <class V, class T>
SLIM_KERNEL V load_bytes(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}
SLIM_KERNEL Floats load(const float* from) { return load_bytes<Floats>(from); }
SLIM_KERNEL Floats load(const BFloat16* from) {
  return from_bfloat16<Floats>(__builtin_convertvector(load_bytes<Halves>(from), Words));
}
SLIM_KERNEL Floats load(const Half* from) {
  return from_half<Floats>(__builtin_convertvector(load_bytes<Halves>(from), Words));
}
SLIM_KERNEL void store(float* to, Floats v) { memcpy(to, &v, sizeof v); }

/// The first `count` elements; the other lanes repeat the first, which changes no extreme.
template <class T>
SLIM_KERNEL Floats load_some(const T* from, int64_t count) {
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
SLIM_KERNEL Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

#if defined(__FMA__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

SLIM_KERNEL float sum(Floats v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}
SLIM_KERNEL double sum_double(Floats v) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += static_cast<double>(v[i]);
  return total;
}
/// Lane i becomes combine(lane i, lane i + kLanes / 2), and so on by halves: lane 0 is that of all lanes.
template <class F>
SLIM_KERNEL float reduce(Floats v, F&& combine) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    Floats other = v;
    for (int64_t i = 0; i < half; ++i) other[i] = v[i + half];
    v = combine(v, other);
  }
  return v[0];
}
SLIM_KERNEL float largest(Floats v) {
  return reduce(
      v, [](Floats a, Floats b) __attribute__((always_inline)) { return a > b ? a : b; });
}
SLIM_KERNEL float smallest(Floats v) {
  return reduce(
      v, [](Floats a, Floats b) __attribute__((always_inline)) { return a < b ? a : b; });
}

/// The first `count` lanes of v, the others 0.
SLIM_KERNEL Floats keep_first(Floats v, int64_t count) {
  Ints index;
  for (int32_t i = 0; i < kLanes; ++i) index[i] = i;
  return index < static_cast<int32_t>(count) ? v : Floats{};
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
SLIM_KERNEL void exchange(Floats* rows) {
  constexpr Ints kFirst = {into_first<kD>(0),  into_first<kD>(1),  into_first<kD>(2),  into_first<kD>(3),
                           into_first<kD>(4),  into_first<kD>(5),  into_first<kD>(6),  into_first<kD>(7),
                           into_first<kD>(8),  into_first<kD>(9),  into_first<kD>(10), into_first<kD>(11),
                           into_first<kD>(12), into_first<kD>(13), into_first<kD>(14), into_first<kD>(15)};
  constexpr Ints kSecond = {
      into_second<kD>(0),  into_second<kD>(1),  into_second<kD>(2),  into_second<kD>(3),
      into_second<kD>(4),  into_second<kD>(5),  into_second<kD>(6),  into_second<kD>(7),
      into_second<kD>(8),  into_second<kD>(9),  into_second<kD>(10), into_second<kD>(11),
      into_second<kD>(12), into_second<kD>(13), into_second<kD>(14), into_second<kD>(15)};
  for (int i = 0; i < kLanes; ++i) {
    if (i & kD) continue;
    const __m512 a = (__m512)rows[i], b = (__m512)rows[i + kD];
    rows[i] = (Floats)_mm512_permutex2var_ps(a, (__m512i)kFirst, b);
    rows[i + kD] = (Floats)_mm512_permutex2var_ps(a, (__m512i)kSecond, b);
  }
}
/// 16 rows of 16 numbers become columns.
SLIM_KERNEL void transpose(Floats* rows) {
  exchange<1>(rows);
  exchange<2>(rows);
  exchange<4>(rows);
  exchange<8>(rows);
}
#endif

}  // namespace slim::kernels
