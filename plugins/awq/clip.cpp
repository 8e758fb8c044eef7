#include "clip.h"

#include <ATen/ATen.h>

#include "slim/phase.hpp"

namespace slim::awq {
namespace {

ops::ScaleZero in_fp32(const quant::Params& params) {
  return {params.scale.to(at::kFloat), params.zero.defined() ? params.zero.to(at::kFloat) : params.zero};
}

/// Goes through the groups of channels in their order, and knows the errors of those behind it.
class JointSearch {
 public:
  JointSearch(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype, const OutputError& error)
      : weight_(weight),
        args_(args),
        rounding_(rounding_by_rows(args, weight.size(1), scale_dtype)),
        errors_(error.accumulated_for(weight, args.group_size)),
        blocks_(error.diagonal_blocks(args.group_size).to(weight.device())) {
    args_.granularity = Granularity::kChannel;
  }

  Ranges run() {
    const int64_t size = rounding_.unit_columns;
    std::vector<at::Tensor> scales, zeros;
    for (int64_t begin = 0; begin < weight_.size(1); begin += size) {
      const quant::Params params = find(begin);
      scales.push_back(params.scale);
      if (params.zero.defined()) zeros.push_back(params.zero);
    }
    return {{at::cat(scales, 1), zeros.empty() ? at::Tensor() : at::cat(zeros, 1)}, loss_};
  }

 private:
  quant::Params find(int64_t begin) {
    const at::Tensor mine = weight_.narrow(1, begin, rounding_.unit_columns);
    const at::Tensor block = blocks_[begin / rounding_.unit_columns], coupling = errors_.coupling(begin);
    const auto [low, high] = ops::gram_ranges(mine, block.unsqueeze(0), coupling, rounding_);
    quant::Params params = quant::params_from_range(low, high, args_, rounding_.scale_dtype);
    const ops::ScaleZero used = in_fp32(params);
    const at::Tensor delta =
        ops::decode(ops::encode(mine, used, rounding_, at::kFloat), used, rounding_).sub_(mine);
    loss_ += at::mm(delta, block).add_(coupling, 2).mul_(delta).sum(at::kDouble).item<double>();
    errors_.add(begin, delta);
    return params;
  }

  const at::Tensor& weight_;
  QuantArgs args_;
  ops::Rounding rounding_;
  OutputError::Accumulated errors_;
  at::Tensor blocks_;
  double loss_ = 0;
};

}  // namespace

Ranges search_group_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                           const OutputError& error) {
  const PhaseTimer timer(Phase::kRangeSearch);
  const at::Tensor blocks = error.diagonal_blocks(args.group_size).to(weight.device()).contiguous();
  const auto [low, high] =
      ops::gram_ranges(weight, blocks, {}, rounding_by_rows(args, weight.size(1), scale_dtype));
  return {quant::params_from_range(low, high, args, scale_dtype), -1};
}

Ranges search_joint_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                           const OutputError& error) {
  const PhaseTimer timer(Phase::kRangeSearch);
  return JointSearch(weight, args, scale_dtype, error).run();
}

}  // namespace slim::awq
