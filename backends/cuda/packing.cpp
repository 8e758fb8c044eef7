// The words of formats, and masks of n:m sparsity: memory around the grids of launch.cu.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "common/arguments.hpp"
#include "device.h"
#include "launch.hpp"

namespace slim::cuda {
namespace {

using namespace kernels;

uint32_t* words_of(const at::Tensor& packed) {
  return reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
}

at::Tensor pack_codes(const at::Tensor& input, int64_t bits) {
  const at::Tensor codes = input.contiguous();
  const int64_t rows = codes.size(0), count = codes.size(1), words = ceil_div(count * bits, 32);
  at::Tensor packed = at::empty({rows, words}, codes.options().dtype(at::kInt));
  check(launch_pack(codes.const_data_ptr<int8_t>(), rows, count, static_cast<int>(bits), words,
                    words_of(packed)));
  return packed;
}

at::Tensor pack_columns(const at::Tensor& input, int64_t bits) {
  const at::Tensor codes = input.contiguous();
  const int64_t rows = codes.size(0), count = codes.size(1), words = ceil_div(count * bits, 32);
  at::Tensor packed = at::empty({words, rows}, codes.options().dtype(at::kInt));
  check(launch_pack_columns(codes.const_data_ptr<int8_t>(), rows, count, static_cast<int>(bits), words,
                            words_of(packed)));
  return packed;
}

at::Tensor pack_awq(const at::Tensor& input) {
  const at::Tensor codes = input.contiguous();
  const int64_t words = codes.size(0) / 8, count = codes.size(1);
  at::Tensor packed = at::empty({count, words}, codes.options().dtype(at::kInt));
  check(launch_pack_awq(codes.const_data_ptr<int8_t>(), words, count, words_of(packed)));
  return packed;
}

at::Tensor sparsity_mask(const at::Tensor& input, const OptionalTensor& importance, int64_t keep,
                         int64_t of) {
  const at::Tensor weight = with_contiguous_rows(input),
                   channels = importance ? importance->contiguous() : at::Tensor();
  at::Tensor mask = at::empty(weight.sizes(), weight.options().dtype(at::kBool));
  check(launch_mask(matrix(weight), floats(channels), keep, of, mask.mutable_data_ptr<bool>()));
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CUDA, m) {
  m.impl("pack_codes", pack_codes);
  m.impl("pack_columns", pack_columns);
  m.impl("pack_awq", pack_awq);
  m.impl("sparsity_mask", sparsity_mask);
}

}  // namespace slim::cuda
