#include "clip.h"

#include <ATen/ATen.h>

#include "slim/phase.hpp"

namespace slim::awq {
namespace {

ops::ScaleZero in_fp32(const quant::Params& params) {
  return {params.scale.to(at::kFloat), params.zero.defined() ? params.zero.to(at::kFloat) : params.zero};
}

/// Q(w) - w
at::Tensor error_of(const at::Tensor& weight, const quant::Params& params, const ops::Rounding& rounding) {
  const ops::ScaleZero used = in_fp32(params);
  return ops::decode(ops::encode(weight, used, rounding, at::kFloat), used, rounding).sub_(weight);
}

/// Goes once through the groups of channels, and knows the errors of all others: those behind it as they were found, those before it as they
/// were to begin with.
class JointSearch {
 public:
  /// `start`: ranges that are near the best.
  JointSearch(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
              const OutputError& error, quant::Params start)
      : weight_(weight),
        args_(args),
        rounding_(rounding_by_rows(args, weight.size(1), scale_dtype)),
        params_(std::move(start)),
        blocks_(error.diagonal_blocks(args.group_size).to(weight.device())),
        errors_(error, error_of(weight, params_, rounding_), args.group_size) {
    args_.granularity = Granularity::kChannel;
  }

  quant::Params run() {
    for (int64_t group = 0; group < blocks_.size(0); ++group) improve(group);
    return params_;
  }

 private:
  void improve(int64_t group) {
    const at::Tensor mine = weight_.narrow(1, group * rounding_.unit_columns, rounding_.unit_columns);
    const auto [low, high] = ops::gram_ranges(mine, blocks_[group].unsqueeze(0),
                                              errors_.coupling(group, blocks_[group]), rounding_);
    const quant::Params found = quant::params_from_range(low, high, args_, rounding_.scale_dtype);
    errors_.replace(group, error_of(mine, found, rounding_));
    params_.scale.narrow(1, group, 1).copy_(found.scale);
    if (found.zero.defined()) params_.zero.narrow(1, group, 1).copy_(found.zero);
  }

  const at::Tensor& weight_;
  QuantArgs args_;
  ops::Rounding rounding_;
  quant::Params params_;
  at::Tensor blocks_;
  GroupErrors errors_;
};

}  // namespace

quant::Params search_group_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                  const OutputError& error) {
  const PhaseTimer timer(Phase::kRangeSearch);
  const at::Tensor blocks = error.diagonal_blocks(args.group_size).to(weight.device()).contiguous();
  const auto [low, high] =
      ops::gram_ranges(weight, blocks, {}, rounding_by_rows(args, weight.size(1), scale_dtype));
  return quant::params_from_range(low, high, args, scale_dtype);
}

quant::Params search_joint_ranges(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                  const OutputError& error) {
  const PhaseTimer timer(Phase::kRangeSearch);
  return JointSearch(weight, args, scale_dtype, error, search_group_ranges(weight, args, scale_dtype, error))
      .run();
}

}  // namespace slim::awq
