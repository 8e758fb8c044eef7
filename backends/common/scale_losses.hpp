#pragma once
#include "common/arguments.hpp"

/// The products of scale_losses (slim/ops.hpp), which LibTorch does on every device.
namespace slim::kernels {

/// Σ δ gram δᵀ of each candidate, errors [candidates * rows, in]: blocks off the diagonal are met once and count twice. fp64 [candidates].
inline at::Tensor quadratic_losses(const at::Tensor& errors, int64_t candidates, const at::Tensor& gram) {
  constexpr int64_t kColumns = 512;
  const int64_t features = gram.size(0);
  at::Tensor losses = at::zeros({candidates}, errors.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < features; begin += kColumns) {
    const int64_t size = std::min(kColumns, features - begin);
    const at::Tensor part = errors.narrow(1, begin, size);
    const auto add = [&](const at::Tensor& left, const at::Tensor& block, double weight) {
      losses.add_(at::mm(left, block).mul_(part).view({candidates, -1}).sum(1, false, at::kDouble), weight);
    };
    if (begin > 0) add(errors.narrow(1, 0, begin), gram.narrow(0, 0, begin).narrow(1, begin, size), 2);
    add(part, gram.narrow(0, begin, size).narrow(1, begin, size), 1);
  }
  return losses;
}

/// Σ over rows of δ B δᵀ for each candidate and group, errors [candidates * rows, groups * g], blocks [groups, g, g]: fp64 [candidates, groups].
inline at::Tensor block_losses(const at::Tensor& errors, int64_t candidates, const at::Tensor& blocks) {
  const at::Tensor by_group = errors.view({errors.size(0), blocks.size(0), blocks.size(1)}).transpose(0, 1);
  return at::bmm(by_group, blocks)
      .mul_(by_group)
      .view({blocks.size(0), candidates, -1})
      .sum(2, false, at::kDouble)
      .t();
}

/// Σ (δ inputsᵀ)² of each candidate; inputs [tokens, in] of any float dtype, some tokens in fp32 at a time. fp64 [candidates].
inline at::Tensor output_losses(const at::Tensor& errors, int64_t candidates, const at::Tensor& inputs) {
  constexpr int64_t kElements = int64_t{8} << 20;  // of inputs, and of what the errors make of them
  const int64_t tokens =
      std::max<int64_t>(1, kElements / std::max<int64_t>(1, std::max(inputs.size(1), errors.size(0))));
  at::Tensor losses = at::zeros({candidates}, errors.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < inputs.size(0); begin += tokens) {
    const at::Tensor part = inputs.narrow(0, begin, std::min(tokens, inputs.size(0) - begin)).to(at::kFloat);
    losses.add_(at::mm(errors, part.t()).square_().view({candidates, -1}).sum(1, false, at::kDouble));
  }
  return losses;
}

/// Losses of all candidates, some at a time. write_errors(first, count, to) writes δ = Q(W s) / s - W of the candidates
/// [first, first + count) to fp32 [count * rows, in].
template <class F>
at::Tensor losses_of_candidates(const at::Tensor& weight, int64_t candidates, const OptionalTensor& gram,
                                const OptionalTensor& inputs, F&& write_errors) {
  TORCH_CHECK(gram.has_value() != inputs.has_value(), "scale_losses: expected either gram or inputs");
  constexpr int64_t kErrorBytes = int64_t{64} << 20;  // that wait for one product
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const bool by_group = gram && gram->dim() == 3;
  at::Tensor losses =
      by_group ? at::empty({candidates, gram->size(0)}, at::kDouble) : at::empty({candidates}, at::kDouble);
  const auto losses_of = [&](const at::Tensor& errors, int64_t count) {
    if (by_group) return block_losses(errors, count, *gram);
    if (gram) return quadratic_losses(errors, count, *gram);
    return output_losses(errors, count, *inputs);
  };
  const int64_t at_once = std::clamp<int64_t>(kErrorBytes / std::max<int64_t>(1, rows * columns * 4), 1,
                                              std::max<int64_t>(1, candidates));
  for (int64_t first = 0; first < candidates; first += at_once) {
    const int64_t count = std::min(at_once, candidates - first);
    const at::Tensor errors = at::empty({count * rows, columns}, weight.options().dtype(at::kFloat));
    write_errors(first, count, errors.mutable_data_ptr<float>());
    losses.narrow(0, first, count).copy_(losses_of(errors, count));
  }
  return losses;
}

}  // namespace slim::kernels
