#include <immintrin.h>

#include "kernels.hpp"

namespace slim::kernels {
namespace {

constexpr int64_t kRows = 8, kVectors = kGramPanel / 16;

/// kRows x kGramPanel sums stay in registers.
void rows_of_panels(const uint32_t* a, const uint32_t* b, int64_t steps, float (*sums)[kGramPanel]) {
  __m512 sum[kRows][kVectors] = {};
  for (int64_t t = 0; t < steps; ++t, a += kGramPanel, b += kGramPanel) {
    __m512bh right[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) right[v] = (__m512bh)_mm512_loadu_si512(b + 16 * v);
    for (int64_t r = 0; r < kRows; ++r) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r]));
      for (int64_t v = 0; v < kVectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(sums[r] + 16 * v, sum[r][v]);
  }
}

}  // namespace

void gram_panels(const uint32_t* a, const uint32_t* b, int64_t steps, int64_t rows, int64_t columns,
                 float* acc, int64_t stride) {
  float sums[kRows][kGramPanel];
  for (int64_t first = 0; first < rows; first += kRows) {
    rows_of_panels(a + first, b, steps, sums);
    for (int64_t r = 0; r < kRows && first + r < rows; ++r) {
      float* const to = acc + (first + r) * stride;
      for (int64_t c = 0; c < columns; ++c) to[c] += sums[r][c];
    }
  }
}

}  // namespace slim::kernels
