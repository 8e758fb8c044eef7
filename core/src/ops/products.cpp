// How matrix products of a dtype are computed on this processor: decided here, for the whole of slim.
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "slim/ops.hpp"

namespace slim::ops {
namespace {

constexpr const char* kAmx = "AMX";

/// The instructions by which this processor multiplies numbers of 16 bits; "" without.
struct Instructions {
  const char* bfloat16 = "";
  const char* half = "";
};

Instructions find_instructions() {
  Instructions found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // LibTorch's products of 16 bits use these, and without them multiply number by number. AMX: leaf 7, EDX bits 22 (bf16) and 24 (tiles).
  uint32_t a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (__builtin_cpu_supports("avx512bf16")) found.bfloat16 = "AVX512-BF16";
  if ((d >> 23 & 1) != 0 && __builtin_cpu_supports("avx512f")) found.half = "AVX512-FP16";
  if ((d >> 22 & 1) != 0 && (d >> 24 & 1) != 0) found.bfloat16 = kAmx;
#endif
  return found;
}

/// SLIM_PRODUCTS=native leaves every product to LibTorch: for comparisons with programs that do.
bool left_to_libtorch() {
  static const bool native = [] {
    const char* const how = std::getenv("SLIM_PRODUCTS");
    return how && std::string_view(how) == "native";
  }();
  return native;
}

const Instructions& instructions() {
  static const Instructions found = find_instructions();
  return found;
}

const char* instructions_for(at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return instructions().bfloat16;
  return dtype == at::kHalf ? instructions().half : "";
}

bool has_16_bits(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

/// x [tokens, in] and weight [out, in] of 16 bits, multiplied in fp32.
at::Tensor linear_in_fp32(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t out = weight.size(0), in = weight.size(1);
  const int64_t tile = std::clamp<int64_t>(kLinearTileBytes / (std::max<int64_t>(1, in) * 4), 64, 4096);
  const at::Tensor input = x.to(at::kFloat);
  const at::Tensor offset = bias.defined() ? bias.to(at::kFloat) : bias;
  at::Tensor result = at::empty({x.size(0), out}, x.options());
  for (int64_t begin = 0; begin < out; begin += tile) {
    const int64_t rows = std::min(tile, out - begin);
    const at::Tensor part = weight.narrow(0, begin, rows).to(at::kFloat).t();
    result.narrow(1, begin, rows)
        .copy_(offset.defined() ? at::addmm(offset.narrow(0, begin, rows), input, part)
                                : at::mm(input, part));
  }
  return result;
}

}  // namespace

at::ScalarType product_dtype(at::ScalarType dtype, at::Device device) {
  const bool by_hand =
      device.is_cpu() && has_16_bits(dtype) && *instructions_for(dtype) == 0 && !left_to_libtorch();
  return by_hand ? at::kFloat : dtype;
}

bool products_keep_copies(at::ScalarType dtype) {
  return has_16_bits(dtype) && product_dtype(dtype, at::kCPU) == dtype &&
         std::string_view(instructions_for(dtype)) != kAmx;
}

std::string product_text(at::ScalarType dtype, at::Device device) {
  std::string text = dtype == at::kBFloat16 ? "bfloat16" : dtype == at::kHalf ? "float16" : "float32";
  if (!device.is_cpu()) return text + " by the device";
  if (product_dtype(dtype, device) != dtype) return text + " in fp32 (sgemm)";
  if (has_16_bits(dtype) && left_to_libtorch()) return text + " by LibTorch (SLIM_PRODUCTS=native)";
  const std::string how = instructions_for(dtype);
  return how.empty() ? text + " (sgemm)" : text + " by " + how;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  // Of a few tokens every weight is used once or twice: LibTorch's products of 16 bits then wait for memory, and conversion would add to it.
  constexpr int64_t kFewTokens = 2;
  const int64_t tokens = x.size(-1) > 0 ? x.numel() / x.size(-1) : 0;
  if (product_dtype(x.scalar_type(), x.device()) == x.scalar_type() || tokens <= kFewTokens)
    return at::linear(x, weight, bias);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return linear_in_fp32(x.reshape({-1, x.size(-1)}), weight, bias).view(shape);
}

}  // namespace slim::ops
