#include "values.h"

#include <ATen/ATen.h>

#include <limits>

namespace slim::ascend {

Result<at::Tensor> quant_bias(const at::Tensor& codes, const at::Tensor& deq_scale,
                              const at::Tensor& input_offset, const at::Tensor& bias) {
  at::Tensor value =
      codes.sum(1, /*keepdim=*/false, at::kLong).to(at::kDouble) * -input_offset.to(at::kDouble);
  if (bias.defined()) value = bias.to(at::kDouble).div(deq_scale.to(at::kDouble)).add_(value);
  value.round_();
  const at::Tensor large = (value.abs() > std::numeric_limits<int32_t>::max()).nonzero();
  if (large.numel() > 0) {
    const auto row = large[0][0].item<int64_t>();
    return Status(
        Code::kNumeric,
        "row " + std::to_string(row) + ": quant_bias " + std::to_string(value[row].item<double>()) +
            " does not fit 32 bits; the row's weights are tiny beside its bias: leave the layer in float "
            "with ignore_layers");
  }
  return value.to(at::kInt);
}

at::Tensor float_bits(const at::Tensor& values) {
  return values.to(at::kFloat).contiguous().view(at::kInt).to(at::kLong);
}

Result<at::Tensor> bits_float(const at::Tensor& bits) {
  const at::Tensor valid = (bits >= 0).logical_and(bits <= std::numeric_limits<int32_t>::max());
  if (!valid.all().item<bool>())
    return Status(Code::kCorrupt, "holds a number that is not the 32 bits of a positive float");
  return bits.to(at::kInt).view(at::kFloat);
}

at::Tensor pack_row_pairs(const at::Tensor& codes) {
  const at::Tensor low = codes.slice(0, 0, codes.size(0), 2), high = codes.slice(0, 1, codes.size(0), 2);
  return low.bitwise_and(15).bitwise_or(high.bitwise_left_shift(4)).contiguous();
}

at::Tensor unpack_row_pairs(const at::Tensor& packed) {
  const at::Tensor low = packed.bitwise_left_shift(4).bitwise_right_shift(4),
                   high = packed.bitwise_right_shift(4);
  return at::stack({low, high}, 1).reshape({packed.size(0) * 2, packed.size(1)});
}

}  // namespace slim::ascend
