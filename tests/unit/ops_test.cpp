#include "slim/ops.hpp"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <doctest/doctest.h>

using namespace slim;

TEST_CASE(
    "ops/ gram_ adds the product of the transposed rows with the rows, in fp32 from every float dtype") {
  at::manual_seed(1);
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (const int64_t tokens : {1, 5, 4096, 4100}) {
      const at::Tensor x = at::randn({tokens, 6}).to(dtype), start = at::full({6, 6}, 0.5);
      at::Tensor sum = start.clone();
      ops::gram_(sum, x);
      const at::Tensor exact = start.to(at::kDouble) + at::matmul(x.to(at::kDouble).t(), x.to(at::kDouble));
      CHECK(at::allclose(sum.to(at::kDouble), exact, 1e-5, 1e-5 * static_cast<double>(tokens)));
    }
  }
}

TEST_CASE(
    "ops/ the upper triangle of a Gram matrix of more channels than one block is right, and mirroring makes "
    "it symmetric") {
  at::manual_seed(3);
  const at::Tensor x = at::randn({9, 2100}).to(at::kBFloat16);
  at::Tensor sum = at::zeros({2100, 2100});
  ops::gram_(sum, x);
  ops::gram_(sum, x.narrow(0, 0, 2));
  ops::mirror_upper_(sum);
  CHECK(at::equal(sum, sum.t()));
  const at::Tensor all = at::cat({x, x.narrow(0, 0, 2)}).to(at::kDouble);
  CHECK(at::allclose(sum.to(at::kDouble), at::matmul(all.t(), all), 1e-5, 1e-4));
}

TEST_CASE("ops/ channel_moments_ adds sums and widens extremes") {
  at::manual_seed(2);
  const at::Tensor x = at::randn({4100, 5});
  at::Tensor sum_abs = at::ones({5}), sum_square = at::ones({5}), min = at::full({5}, -0.5),
             max = at::full({5}, 100.0);
  ops::channel_moments_(sum_abs, sum_square, min, max, x);
  CHECK(at::allclose(sum_abs, x.abs().sum(0) + 1, 1e-5));
  CHECK(at::allclose(sum_square, x.square().sum(0) + 1, 1e-5));
  CHECK(at::equal(min, std::get<0>(x.min(0)).clamp_max(-0.5)));
  CHECK(at::equal(max, at::full({5}, 100.0)));
}

TEST_CASE("ops/ every operator has a kernel for devices without one of their own") {
  for (const char* name : {"slim::gram_", "slim::channel_moments_"}) {
    const auto op = c10::Dispatcher::singleton().findSchema({name, ""});
    REQUIRE(op.has_value());
    CHECK(op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd));
  }
}
