#include "slim/feedback.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace slim;

namespace {

constexpr int64_t kPanel = quant::UpperTriangle::kPanelRows;

std::vector<at::Tensor> panels_of(const at::Tensor& matrix) {
  std::vector<at::Tensor> panels;
  for (int64_t begin = 0; begin < matrix.size(0); begin += kPanel) {
    panels.push_back(matrix.narrow(0, begin, std::min(kPanel, matrix.size(0) - begin)).slice(1, begin).clone(at::MemoryFormat::Contiguous));
  }
  return panels;
}

at::Tensor positive_definite(int64_t size) {
  const at::Tensor x = at::randn({2 * size, size}, at::kDouble);
  return at::matmul(x.t(), x) / static_cast<double>(2 * size);
}

}  // namespace

TEST_CASE("feedback/ the factor of the inverse is that of the definition, whether it takes one panel or several") {
  at::manual_seed(1);
  for (const int64_t size : {int64_t{1}, int64_t{37}, kPanel, kPanel + 1, 2 * kPanel + 300}) {
    const at::Tensor hessian = positive_definite(size);
    const auto factor = quant::inverse_factor(panels_of(hessian));
    REQUIRE(factor);
    const at::Tensor upper = factor->block(0, size, 0, size);
    CHECK(at::equal(upper, upper.triu()));
    CHECK((upper.diagonal() > 0).all().item<bool>());
    const at::Tensor product = at::matmul(at::matmul(upper.t(), upper), hessian);  // H⁻¹ H
    CHECK((product - at::eye(size, at::kDouble)).abs().max().item<double>() < 1e-9);
    const auto single = quant::inverse_factor(panels_of(hessian.to(at::kFloat)));
    REQUIRE(single);
    const at::Tensor difference = single->block(0, size, 0, size).to(at::kDouble) - upper;
    CHECK((difference.norm() / upper.norm()).item<double>() < 1e-4);
  }
}

TEST_CASE("feedback/ a matrix that is not positive definite has no factor, wherever it shows") {
  at::manual_seed(2);
  for (const int64_t size : {int64_t{40}, kPanel + 200}) {
    for (const int64_t bad : {int64_t{0}, size / 2, size - 1}) {
      at::Tensor hessian = positive_definite(size);
      hessian[bad][bad] = -1;
      CHECK_FALSE(quant::inverse_factor(panels_of(hessian)));
    }
  }
}

TEST_CASE("feedback/ any block of a triangle is that of the whole matrix") {
  at::manual_seed(3);
  const int64_t size = 2 * kPanel + 50;
  const at::Tensor whole = at::randn({size, size}).triu();
  const quant::UpperTriangle triangle(panels_of(whole));
  CHECK(triangle.size() == size);
  for (int i = 0; i < 200; ++i) {
    const auto ends = std::get<0>(at::randint(0, size + 1, {2, 2}, at::kLong).sort(1));
    const int64_t row = ends[0][0].item<int64_t>(), row_end = ends[0][1].item<int64_t>();
    const int64_t column = ends[1][0].item<int64_t>(), column_end = ends[1][1].item<int64_t>();
    CHECK(at::equal(triangle.block(row, row_end, column, column_end),
                    whole.narrow(0, row, row_end - row).narrow(1, column, column_end - column)));
  }
}

TEST_CASE("feedback/ the loss of a row is that of its error under E[x xᵀ], whatever the width") {
  at::manual_seed(4);
  for (const int64_t size : {int64_t{5}, int64_t{1024}, int64_t{1500}}) {
    Gram gram(size);
    gram.update(at::randn({300, size}));
    const at::Tensor delta = at::randn({7, size}), wide = delta.to(at::kDouble);
    const at::Tensor expected = at::matmul(wide, gram.mean().to(at::kDouble)).mul(wide).sum(1);
    CHECK(at::allclose(quant::row_errors(delta, gram).to(at::kDouble), expected, 1e-4));
  }
}
