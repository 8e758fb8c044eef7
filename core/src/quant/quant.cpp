#include "slim/quant.hpp"

#include <ATen/ATen.h>

#include "quant/arithmetic.h"
#include "quant/quantize.h"
#include "quant/units.h"
#include "slim/ops.hpp"

namespace slim::quant {
namespace {

Params stored(const FloatParams& params, at::ScalarType dtype) {
  return {params.scale.to(dtype), params.zero.defined() ? params.zero.to(at::kChar) : at::Tensor()};
}

FloatParams computed(const Params& params) {
  return {params.scale.to(at::kFloat), params.zero.defined() ? params.zero.to(at::kFloat) : at::Tensor()};
}

Status check(const at::Tensor& weight, const QuantArgs& args) {
  if (weight.dim() != 2)
    return {Code::kInvalidArgument, "a weight has two dimensions, found " + std::to_string(weight.dim())};
  if (args.type == NumberType::kFloat && (args.bits != 8 || !args.symmetric)) {
    return {Code::kUnsupported,
            "float codes are 8-bit E4M3 without zero points; found " + std::to_string(args.bits) + " bits"};
  }
  if (args.bits < 2 || args.bits > 8) {
    return {Code::kUnsupported, "codes have 2 to 8 bits, found " + std::to_string(args.bits)};
  }
  return {};
}

/// The operators' view of a scheme. encode() and decode() take params that choose_params() or a checked decoder made: a mismatch is a
/// programming error.
ops::Rounding rounding_of(const QuantArgs& args, int64_t out, int64_t in,
                          at::ScalarType scale_dtype = at::kFloat) {
  const Result<Units> units = Units::make(args, out, in);
  TORCH_CHECK(units.ok(), units.status().message());
  return {units->unit_rows(), units->unit_columns(),
          args.bits,          args.type == NumberType::kFloat,
          args.symmetric,     scale_dtype};
}

ops::RangeSearch search_of(const RangeOptions& options) {
  ops::RangeSearch search;
  search.abs_max = options.fused_abs_max;
  if (options.method == RangeOptions::Method::kMse) {
    search.importance = options.importance;
    search.max_shrink = options.max_shrink;
    search.norm = options.norm;
    search.steps = options.steps;
  }
  return search;
}

Status check_scale(const at::Tensor& weight, const at::Tensor& scale) {
  if (at::isfinite(scale).all().item<bool>()) return {};
  if (!at::isfinite(weight).all().item<bool>()) {
    return {Code::kNumeric,
            "the weight holds NaN or Inf; the checkpoint is damaged or a transform overflowed"};
  }
  return {Code::kNumeric, "a scale is too large for the dtype that the output format stores scales in"};
}

}  // namespace

StoredWeight::~StoredWeight() = default;

Result<Params> choose_params(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                             const RangeOptions& options) {
  SLIM_TRY(check(weight, args));
  SLIM_TRY(Units::make(args, weight.size(0), weight.size(1)).status());
  const FloatParams params = ops::choose_params(
      weight, rounding_of(args, weight.size(0), weight.size(1), scale_dtype), search_of(options));
  SLIM_TRY(check_scale(weight, params.scale));
  return stored(params, scale_dtype);
}

Result<Measured> quantize(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                          const RangeOptions& options, at::ScalarType arithmetic) {
  SLIM_TRY(check(weight, args));
  SLIM_TRY(Units::make(args, weight.size(0), weight.size(1)).status());
  const auto [rounded, error] = ops::round_units_measured(
      weight, rounding_of(args, weight.size(0), weight.size(1), scale_dtype), search_of(options), arithmetic);
  SLIM_TRY(check_scale(weight, rounded.scale));
  const Params params = stored({rounded.scale, rounded.zero}, scale_dtype);
  return Measured{Quantized{args, rounded.codes, params.scale, params.zero, {}}, error};
}

Params params_from_range(const at::Tensor& low, const at::Tensor& high, const QuantArgs& args,
                         at::ScalarType scale_dtype) {
  return stored(float_params(low, high, code_range(args), scale_dtype), scale_dtype);
}

at::Tensor encode(const at::Tensor& weight, const Params& params, const QuantArgs& args,
                  at::ScalarType arithmetic) {
  return ops::encode(weight, computed(params), rounding_of(args, weight.size(0), weight.size(1)), arithmetic);
}

at::Tensor decode(const at::Tensor& codes, const Params& params, const QuantArgs& args) {
  return ops::decode(codes, computed(params), rounding_of(args, codes.size(0), codes.size(1)));
}

ops::RoundingError rounding_error(const at::Tensor& weight, const Quantized& quantized) {
  const ops::Rounding rounding = rounding_of(quantized.args, weight.size(0), weight.size(1));
  return ops::rounding_error(weight, quantized.codes, computed({quantized.scale, quantized.zero}), rounding);
}

bool has_scattered_groups(const Quantized& quantized) {
  if (!quantized.group_index.defined()) return false;
  if (quantized.args.granularity != Granularity::kGroup)
    return quantized.group_index.ne(0).any().item<bool>();
  const at::Tensor index = quantized.group_index.cpu().to(at::kInt);
  return !at::equal(index,
                    at::arange(index.size(0), at::kInt).div(quantized.args.group_size, "floor").to(at::kInt));
}

at::Tensor decode(const Quantized& quantized) {
  if (!quantized.group_index.defined())
    return decode(quantized.codes, {quantized.scale, quantized.zero}, quantized.args);
  // Groups of scattered channels: every channel gets the column of its group, as groups of one.
  const at::Tensor index = quantized.group_index.to(at::kLong);
  const auto per_channel = [&](const at::Tensor& x) { return x.defined() ? x.index_select(1, index) : x; };
  QuantArgs args = quantized.args;
  args.granularity = Granularity::kGroup;
  args.group_size = 1;
  return decode(quantized.codes, {per_channel(quantized.scale), per_channel(quantized.zero)}, args);
}

at::Tensor fake_quantize(const at::Tensor& weight, const Params& params, const QuantArgs& args) {
  return decode(encode(weight, params, args), params, args);
}

Result<at::Tensor> fake_quantize(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                 const RangeOptions& options) {
  SLIM_ASSIGN(const Params params, choose_params(weight, args, scale_dtype, options));
  return fake_quantize(weight, params, args);
}

namespace {

/// The scale that an engine finds for an activation at run time: max|x| maps to the largest code (127, 448), as vLLM's kernels have it
/// (int8 checked against its CPU build, 0.32). compressed-tensors, and so transformers, simulates the same layers with max|x| / 127.5 and
/// in the model's dtype on a CPU, where the 8 bits of a bf16 quotient move many int8 codes: served results are nearer to this.
FloatParams dynamic_params(const at::Tensor& units, const QuantArgs& args, bool whole) {
  const CodeRange codes = code_range(args);
  const auto [low, high] = at::aminmax(whole ? units.reshape({-1}) : units, whole ? 0 : -1, /*keepdim=*/true);
  FloatParams params;
  const auto nonzero = [](const at::Tensor& scale) {
    return at::where(scale == 0, at::ones_like(scale), scale);
  };
  if (args.symmetric) {
    params.scale = nonzero(at::maximum(low.neg(), high) / codes.max);
    return params;
  }
  const at::Tensor min = low.clamp_max(0), max = high.clamp_min(0);
  params.scale = nonzero((max - min) / (codes.max - codes.min));
  params.zero = (codes.min - min / params.scale).round_().clamp_(codes.min, codes.max);
  return params;
}

}  // namespace

at::Tensor fake_quantize_activation(const at::Tensor& x, const QuantArgs& args, const at::Tensor& scale,
                                    const at::Tensor& zero) {
  if (x.numel() == 0) return x;
  const int64_t features = x.size(-1);
  const bool grouped = args.granularity == Granularity::kGroup || args.granularity == Granularity::kBlock;
  const int64_t group = args.granularity == Granularity::kBlock ? args.block_columns : args.group_size;
  at::Tensor units = x.to(at::kFloat).reshape({-1, features});
  if (grouped) {
    const int64_t groups = (features + group - 1) / group;
    units = at::constant_pad_nd(units, {0, groups * group - features}, 0).view({-1, groups, group});
  }
  const FloatParams params = args.dynamic
                                 ? dynamic_params(units, args, args.granularity == Granularity::kTensor)
                                 : computed({scale, zero});
  at::Tensor result = values_of(codes_of(units, params, code_range(args), at::kFloat), params);
  if (grouped) result = result.reshape({result.size(0), -1}).narrow(1, 0, features);
  return result.reshape(x.sizes()).to(x.scalar_type());
}

}  // namespace slim::quant
