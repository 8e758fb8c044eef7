#include "clip.h"

#include "slim/ops.hpp"

namespace slim::awq {

quant::Params search_group_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                  const OutputError& error) {
  const at::Tensor blocks = error.diagonal_blocks(args.group_size).to(weight.device()).contiguous();
  const ops::GroupRanges ranges =
      ops::gram_ranges(weight, blocks, rounding_by_rows(args, weight.size(1), scale_dtype));
  return quant::params_from_range(ranges.low, ranges.high, args, scale_dtype);
}

}  // namespace slim::awq
