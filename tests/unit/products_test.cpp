#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include "slim/ops.hpp"

using namespace slim;

TEST_CASE("products/ fp32 is multiplied as it is, and a device multiplies what it is given") {
  CHECK((ops::product_dtype(at::kFloat, at::kCPU) == at::kFloat));
  CHECK((ops::product_dtype(at::kBFloat16, at::Device(at::kCUDA, 0)) == at::kBFloat16));
}

TEST_CASE("products/ a linear of 16-bit numbers is the fp32 product of these numbers, rounded once") {
  at::manual_seed(1);
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    for (const int64_t tokens : {1, 3, 200}) {
      for (const bool has_bias : {false, true}) {
        const at::Tensor x = at::randn({tokens, 96}).to(dtype), w = at::randn({5000, 96}).to(dtype);
        const at::Tensor bias = has_bias ? at::randn({5000}).to(dtype) : at::Tensor();
        at::Tensor exact = at::matmul(x.to(at::kDouble), w.to(at::kDouble).t());
        if (has_bias) exact.add_(bias.to(at::kDouble));
        const at::Tensor y = ops::linear(x, w, bias);
        CHECK((y.scalar_type() == dtype));
        CHECK(y.sizes() == at::IntArrayRef({tokens, 5000}));
        // Half a step of the dtype, and sums in fp32.
        const double step = dtype == at::kHalf ? 1.0 / 2048 : 1.0 / 256;
        CHECK(((y.to(at::kDouble) - exact).abs() <= step * exact.abs() + 1e-4).all().item<bool>());
      }
    }
  }
}

TEST_CASE("products/ leading dimensions stay, and no tokens give no outputs") {
  const at::Tensor w = at::randn({8, 16}).to(at::kBFloat16);
  CHECK(ops::linear(at::randn({2, 5, 16}).to(at::kBFloat16), w).sizes() == at::IntArrayRef({2, 5, 8}));
  CHECK(ops::linear(at::empty({0, 16}, at::kBFloat16), w).sizes() == at::IntArrayRef({0, 8}));
}

TEST_CASE("products/ reports say in words how products are computed") {
  CHECK(ops::product_text(at::kFloat, at::kCPU) == "float32 (sgemm)");
  const std::string text = ops::product_text(at::kBFloat16, at::kCPU);
  const bool native = ops::product_dtype(at::kBFloat16, at::kCPU) == at::kBFloat16;
  CHECK_MESSAGE(text.starts_with(native ? "bfloat16 by A" : "bfloat16 in fp32"), text);
}
