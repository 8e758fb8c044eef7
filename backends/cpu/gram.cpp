// Gram matrices: bf16 by AVX512-BF16 where it is there, else the reference, which is LibTorch's product.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "common/arguments.hpp"
#include "in_use.h"
#include "slim/parallel.hpp"

namespace slim::cpu {
namespace {

using namespace kernels;

#if defined(__x86_64__)
bool has_bfloat16_products() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw");
}

constexpr int64_t kGramTokens = 512;  // a panel of so many stays in the second cache

/// Pairs of tokens [begin, begin + count) in panels of features; zeros fill up.
std::vector<uint32_t> gram_panels_of(const at::Tensor& x, int64_t begin, int64_t count) {
  constexpr int64_t kPanel = kernels::kGramPanel;
  const int64_t features = x.size(1), panels = ceil_div(features, kPanel), steps = ceil_div(count, 2);
  std::vector<uint32_t> packed(static_cast<size_t>(panels * steps * kPanel));
  const auto* const rows = static_cast<const uint16_t*>(x.const_data_ptr()) + begin * x.stride(0);
  parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t columns = std::min(kPanel, features - p * kPanel);
      for (int64_t t = 0; t < steps; ++t) {
        const uint16_t* const even = rows + 2 * t * x.stride(0) + p * kPanel;
        const uint16_t* const odd = 2 * t + 1 < count ? even + x.stride(0) : nullptr;
        uint32_t* const to = packed.data() + (p * steps + t) * kPanel;
        for (int64_t c = 0; c < columns; ++c)
          to[c] = even[c] | (odd ? static_cast<uint32_t>(odd[c]) << 16 : 0);
      }
    }
  });
  return packed;
}

/// Only panels on and above the diagonal are multiplied; the mirrored result is exactly symmetric.
void gram_bfloat16(const at::Tensor& acc, const at::Tensor& x) {
  constexpr int64_t kPanel = kernels::kGramPanel;
  const int64_t features = x.size(1), panels = ceil_div(features, kPanel), stride = acc.stride(0);
  float* const sums = acc.mutable_data_ptr<float>();
  std::vector<std::pair<int64_t, int64_t>> tiles;
  for (int64_t a = 0; a < panels; ++a) {
    for (int64_t b = a; b < panels; ++b) tiles.emplace_back(a, b);
  }
  const auto width = [&](int64_t p) { return std::min(kPanel, features - p * kPanel); };
  const auto for_each_tile = [&](int64_t grain, auto&& f) {
    parallel_for(0, static_cast<int64_t>(tiles.size()), grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        f(tiles[static_cast<size_t>(i)].first, tiles[static_cast<size_t>(i)].second);
    });
  };
  for (int64_t begin = 0; begin < x.size(0); begin += kGramTokens) {
    const int64_t count = std::min(kGramTokens, x.size(0) - begin), steps = ceil_div(count, 2);
    const std::vector<uint32_t> packed = gram_panels_of(x, begin, count);
    for_each_tile(std::max<int64_t>(1, 64 / steps), [&](int64_t a, int64_t b) {
      kernels::gram_panels(packed.data() + a * steps * kPanel, packed.data() + b * steps * kPanel, steps,
                           width(a), width(b), sums + a * kPanel * stride + b * kPanel, stride);
    });
  }
  for_each_tile(16, [&](int64_t a, int64_t b) {
    if (a == b) return;
    for (int64_t i = a * kPanel; i < a * kPanel + width(a); ++i) {
      for (int64_t j = b * kPanel; j < b * kPanel + width(b); ++j)
        sums[j * stride + i] = sums[i * stride + j];
    }
  });
}

void gram_(at::Tensor acc, const at::Tensor& input) {
  const bool in_use = std::string_view(kernels_in_use().name) == "avx512";
  if (in_use && input.scalar_type() == at::kBFloat16 && acc.scalar_type() == at::kFloat &&
      acc.stride(1) == 1) {
    TORCH_CHECK(acc.size(0) == input.size(1) && acc.size(1) == input.size(1),
                "gram_: acc is [features, features]");
    return gram_bfloat16(acc, with_contiguous_rows(input));
  }
  reference<void(at::Tensor, const at::Tensor&)>("slim::gram_", std::move(acc), input);
}
#endif

}  // namespace

TORCH_LIBRARY_IMPL(slim, CPU, m) {
#if defined(__x86_64__)
  if (has_bfloat16_products()) m.impl("gram_", gram_);
#endif
}

}  // namespace slim::cpu
