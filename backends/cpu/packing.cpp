// The words of formats, and masks of n:m sparsity: memory and threads around the kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/arguments.hpp"
#include "in_use.h"
#include "slim/parallel.hpp"

namespace slim::cpu {
namespace {

using namespace kernels;

/// f(first, last) for tiles of rows (or columns) of `size` codes each.
template <class F>
void for_each_tile(int64_t tiles, int64_t size, F&& f) {
  parallel_for(0, tiles, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)), std::forward<F>(f));
}

at::Tensor pack_codes(const at::Tensor& input, int64_t bits) {
  const at::Tensor codes = input.contiguous();
  const int64_t rows = codes.size(0), count = codes.size(1), words = ceil_div(count * bits, 32);
  at::Tensor packed = at::empty({rows, words}, at::kInt);
  const int8_t* const from = codes.const_data_ptr<int8_t>();
  auto* const to = reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
  for_each_tile(rows, count, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernels_in_use().pack(from + row * count, count, static_cast<int>(bits), to + row * words);
  });
  return packed;
}

at::Tensor pack_columns(const at::Tensor& input, int64_t bits) {
  const at::Tensor codes = input.contiguous();
  const int64_t rows = codes.size(0), count = codes.size(1), words = ceil_div(count * bits, 32);
  at::Tensor packed = at::empty({words, rows}, at::kInt);
  const int8_t* const from = codes.const_data_ptr<int8_t>();
  auto* const to = reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
  for_each_tile(ceil_div(rows, kPackTile), count * kPackTile, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> scratch(static_cast<size_t>(kPackTile * words));
    for (int64_t row = begin * kPackTile; row < std::min(end * kPackTile, rows); row += kPackTile) {
      kernels_in_use().pack_columns(from + row * count, std::min(kPackTile, rows - row), count,
                                    static_cast<int>(bits), rows, scratch.data(), to + row);
    }
  });
  return packed;
}

at::Tensor pack_awq(const at::Tensor& input) {
  const at::Tensor codes = input.contiguous();
  const int64_t words = codes.size(0) / 8, count = codes.size(1);
  at::Tensor packed = at::empty({count, words}, at::kInt);
  const int8_t* const from = codes.const_data_ptr<int8_t>();
  auto* const to = reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
  for_each_tile(ceil_div(count, kAwqColumns), codes.size(0) * kAwqColumns, [&](int64_t begin, int64_t end) {
    kernels_in_use().pack_awq(from, words, count, begin * kAwqColumns, std::min(end * kAwqColumns, count),
                              to);
  });
  return packed;
}

at::Tensor sparsity_mask(const at::Tensor& input, const OptionalTensor& importance, int64_t keep,
                         int64_t of) {
  if (of > kLongestRun || input.numel() == 0) {
    return reference<at::Tensor(const at::Tensor&, const OptionalTensor&, int64_t, int64_t)>(
        "slim::sparsity_mask", input, importance, keep, of);
  }
  const at::Tensor weight = with_contiguous_rows(input),
                   channels = importance ? importance->contiguous() : at::Tensor();
  const int64_t rows = weight.size(0), columns = weight.size(1);
  at::Tensor mask = at::empty(weight.sizes(), at::kBool);
  auto* const to = reinterpret_cast<uint8_t*>(mask.mutable_data_ptr<bool>());
  const Matrix from = matrix(weight);
  for_each_tile(rows, columns, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(mask_scratch(columns, of)));
    for (int64_t row = begin; row < end; ++row)
      kernels_in_use().mask(from, row, floats(channels), keep, of, scratch.data(), to + row * columns);
  });
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CPU, m) {
  m.impl("pack_codes", pack_codes);
  m.impl("pack_columns", pack_columns);
  m.impl("pack_awq", pack_awq);
  m.impl("sparsity_mask", sparsity_mask);
}

}  // namespace slim::cpu
