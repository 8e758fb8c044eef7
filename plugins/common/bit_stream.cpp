#include "common/bit_stream.hpp"

#include <ATen/ATen.h>

#include "slim/ops.hpp"
#include "slim/parallel.hpp"

namespace slim::formats {
namespace {

void unpack_row(const int32_t* words, int64_t count, int bits, int8_t* codes) {
  const int offset = 1 << (bits - 1);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t pending = 0;
  int held = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (held < bits) {
      pending |= static_cast<uint64_t>(static_cast<uint32_t>(*words++)) << held;
      held += 32;
    }
    codes[i] = static_cast<int8_t>(static_cast<int>(pending & mask) - offset);
    pending >>= bits;
    held -= bits;
  }
}

template <class F>
void for_each_row(int64_t rows, int64_t elements_per_row, F&& f) {
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 16) / std::max<int64_t>(1, elements_per_row));
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row);
  });
}

}  // namespace

at::Tensor pack_rows(const at::Tensor& codes, int bits) {
  return ops::pack_codes(codes.to(at::kChar), bits).cpu();
}

at::Tensor unpack_rows(const at::Tensor& words, int bits, int64_t count) {
  const at::Tensor source = words.contiguous();
  const int64_t rows = source.size(0), stride = source.size(1);
  at::Tensor codes = at::empty({rows, count}, at::kChar);
  const int32_t* from = source.const_data_ptr<int32_t>();
  int8_t* to = codes.mutable_data_ptr<int8_t>();
  for_each_row(rows, count,
               [&](int64_t row) { unpack_row(from + row * stride, count, bits, to + row * count); });
  return codes;
}

}  // namespace slim::formats
