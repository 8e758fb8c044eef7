// The words of formats, and masks of n:m sparsity: reference kernels for any device.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>

#include "ops/call.h"
#include "slim/ops.hpp"
#include "slim/parallel.hpp"

namespace slim::ops {
namespace {

void pack_row(const int8_t* codes, int64_t count, int bits, int32_t* words) {
  const int offset = 1 << (bits - 1);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t pending = 0;
  int held = 0;
  for (int64_t i = 0; i < count; ++i) {
    pending |= (static_cast<uint64_t>(codes[i] + offset) & mask) << held;
    held += bits;
    if (held >= 32) {
      *words++ = static_cast<int32_t>(static_cast<uint32_t>(pending));
      pending >>= 32;
      held -= 32;
    }
  }
  if (held > 0) *words = static_cast<int32_t>(static_cast<uint32_t>(pending));
}

/// Any device: the work is done on the host.
at::Tensor pack_codes_reference(const at::Tensor& codes, int64_t bits) {
  const at::Tensor source = codes.to(at::kCPU, at::kChar).contiguous();
  const int64_t rows = source.size(0), count = source.size(1), words = (count * bits + 31) / 32;
  at::Tensor packed = at::empty({rows, words}, at::kInt);
  const int8_t* const from = source.const_data_ptr<int8_t>();
  int32_t* const to = packed.mutable_data_ptr<int32_t>();
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 16) / std::max<int64_t>(1, count));
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      pack_row(from + row * count, count, static_cast<int>(bits), to + row * words);
  });
  return packed.to(codes.device());
}

at::Tensor pack_columns_reference(const at::Tensor& codes, int64_t bits) {
  return pack_codes(codes, bits).t().contiguous();
}

at::Tensor pack_awq_reference(const at::Tensor& codes) {
  constexpr std::array<int64_t, 8> kOrder = {0, 2, 4, 6, 1, 3, 5, 7};  // position -> channel of its eight
  const at::Tensor order = at::tensor(at::ArrayRef<int64_t>(kOrder.data(), kOrder.size()),
                                      at::device(codes.device()).dtype(at::kLong));
  const at::Tensor words =
      codes.t().reshape({codes.size(1), -1, int64_t{kOrder.size()}}).index_select(2, order);
  return pack_codes(words.reshape({codes.size(1), codes.size(0)}), 4);
}

at::Tensor sparsity_mask_reference(const at::Tensor& weight, const OptionalTensor& importance, int64_t keep,
                                   int64_t of) {
  at::Tensor score = weight.to(at::kFloat).abs();
  if (importance) score.mul_(*importance);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  score.nan_to_num_(kInfinity, kInfinity);
  const int64_t in = score.size(1), runs = (in + of - 1) / of;
  // Padding ranks behind everything.
  const at::Tensor padded =
      at::constant_pad_nd(score, {0, runs * of - in}, -1).view({score.size(0), runs, of});
  const at::Tensor order = std::get<1>(at::sort(padded, /*stable=*/true, /*dim=*/-1, /*descending=*/true));
  at::Tensor mask = at::zeros_like(padded, at::kBool);
  mask.scatter_(-1, order.narrow(-1, 0, keep), 1);
  return mask.view({score.size(0), -1}).narrow(1, 0, in).contiguous();
}

void check_codes(const char* op, const at::Tensor& codes, int64_t bits) {
  TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == at::kChar && bits >= 1 && bits <= 8, op,
              ": expected int8 codes [rows, count] of 1 to 8 bits, found ", codes.scalar_type(), " ",
              codes.sizes(), " of ", bits, " bits");
}

}  // namespace

at::Tensor pack_codes(const at::Tensor& codes, int64_t bits) {
  check_codes("pack_codes", codes, bits);
  static const Operator<at::Tensor(const at::Tensor&, int64_t)> op("slim::pack_codes");
  return op(codes, bits);
}

at::Tensor pack_columns(const at::Tensor& codes, int64_t bits) {
  check_codes("pack_columns", codes, bits);
  static const Operator<at::Tensor(const at::Tensor&, int64_t)> op("slim::pack_columns");
  return op(codes, bits);
}

at::Tensor pack_awq(const at::Tensor& codes) {
  check_codes("pack_awq", codes, 4);
  TORCH_CHECK(codes.size(0) % 8 == 0, "pack_awq: eight channels make a word, which do not divide ",
              codes.size(0));
  static const Operator<at::Tensor(const at::Tensor&)> op("slim::pack_awq");
  return op(codes);
}

at::Tensor sparsity_mask(const at::Tensor& weight, const at::Tensor& importance, int64_t keep, int64_t of) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_floating_point(),
              "sparsity_mask: expected a matrix of floats, found ", weight.sizes());
  TORCH_CHECK(keep >= 1 && keep < of, "sparsity_mask: keep ", keep, " of ", of);
  TORCH_CHECK(!importance.defined() || (importance.dim() == 1 && importance.size(0) == weight.size(1) &&
                                        importance.scalar_type() == at::kFloat),
              "sparsity_mask: importance is fp32 [in]");
  static const Operator<at::Tensor(const at::Tensor&, const OptionalTensor&, int64_t, int64_t)> op(
      "slim::sparsity_mask");
  return op(weight, optional(importance), keep, of);
}

}  // namespace slim::ops

TORCH_LIBRARY_FRAGMENT(slim, m) {
  m.def("pack_codes(Tensor codes, int bits) -> Tensor");
  m.def("pack_columns(Tensor codes, int bits) -> Tensor");
  m.def("pack_awq(Tensor codes) -> Tensor");
  m.def("sparsity_mask(Tensor weight, Tensor? importance, int keep, int of) -> Tensor");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("pack_codes", slim::ops::pack_codes_reference);
  m.impl("pack_columns", slim::ops::pack_columns_reference);
  m.impl("pack_awq", slim::ops::pack_awq_reference);
  m.impl("sparsity_mask", slim::ops::sparsity_mask_reference);
}
