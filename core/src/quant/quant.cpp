#include "slim/quant.hpp"

#include <ATen/ATen.h>

#include "units.h"

namespace slim::quant {
namespace {

constexpr double kMaxE4M3 = 448.0;

double min_value(const QuantArgs& args) {
  return args.type == NumberType::kFloat ? -kMaxE4M3 : static_cast<double>(args.min_code());
}
double max_value(const QuantArgs& args) {
  return args.type == NumberType::kFloat ? kMaxE4M3 : static_cast<double>(args.max_code());
}

/// Scales and zero points in fp32 (zero undefined when symmetric); every scale is a number of `scale_dtype`.
struct FloatParams {
  at::Tensor scale, zero;
};

at::Tensor rounded_to(const at::Tensor& x, at::ScalarType dtype) {
  return dtype == at::kFloat ? x : x.to(dtype).to(at::kFloat);
}

/// The order of operations is that of compressed-tensors 0.19 (calculate_qparams), which computes in the model's dtype: each
/// intermediate result is rounded to it. There the extremes already are numbers of that dtype.
FloatParams float_params(const at::Tensor& low, const at::Tensor& high, const QuantArgs& args, at::ScalarType dtype) {
  const auto rounded = [&](const at::Tensor& x) { return rounded_to(x, dtype); };
  const at::Tensor min = rounded(low.clamp_max(0)), max = rounded(high.clamp_min(0));
  const double code_range = max_value(args) - min_value(args);
  FloatParams params;
  if (args.symmetric) {
    params.scale = rounded(at::maximum(min.neg(), max) / (code_range / 2));
  } else {
    params.scale = rounded(rounded(max - min) / code_range);
  }
  params.scale = at::where(params.scale == 0, at::ones_like(params.scale), params.scale);
  if (!args.symmetric) {
    const at::Tensor zero = rounded(min_value(args) - rounded(min / params.scale));
    params.zero = zero.clamp_(min_value(args), max_value(args)).round_();
  }
  return params;
}

/// Codes in fp32. Rounding happens after the zero point is added, as in compressed-tensors' kernels: (ties differ otherwise).
at::Tensor codes_of(const at::Tensor& w, const FloatParams& params, const QuantArgs& args, at::ScalarType arithmetic) {
  at::Tensor scaled = rounded_to(w / params.scale, arithmetic);
  if (params.zero.defined()) scaled = rounded_to(scaled.add_(params.zero), arithmetic);
  scaled.clamp_(min_value(args), max_value(args));
  return args.type == NumberType::kFloat ? scaled.to(at::kFloat8_e4m3fn).to(at::kFloat) : scaled.round_();
}

at::Tensor values_of(const at::Tensor& codes, const FloatParams& params) {
  return params.zero.defined() ? (codes - params.zero).mul_(params.scale) : codes * params.scale;
}

struct Extremes {
  at::Tensor min, max;  // [scale rows, scale columns]
};

Result<Extremes> extremes(const at::Tensor& weight, const Units& units) {
  const int64_t steps = (weight.size(0) + units.row_step() - 1) / units.row_step();
  at::Tensor min = at::empty({steps, units.scale_columns()}, weight.options()), max = at::empty_like(min);
  units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
    const auto [low, high] = at::aminmax(units.split(weight.narrow(0, begin, rows)), -1);
    units.steps_of(min, begin, rows).copy_(low);
    units.steps_of(max, begin, rows).copy_(high);
  });
  // Both pass NaN on, so that this sees every element.
  if (!at::isfinite(min).logical_and_(at::isfinite(max)).all().item<bool>()) {
    return Status(Code::kNumeric, "the weight holds NaN or Inf; the checkpoint is damaged or a transform overflowed");
  }
  if (units.whole_tensor()) return Extremes{min.min().view({1, 1}), max.max().view({1, 1})};
  return Extremes{min, max};
}

/// Σ importance |ŵ - w|^norm of each unit [steps, units].
at::Tensor error_of(const at::Tensor& w, const FloatParams& params, const QuantArgs& args, const RangeOptions& options,
                    const at::Tensor& importance) {
  at::Tensor error = values_of(codes_of(w, params, args, at::kFloat), params).sub_(w).abs_();
  if (options.norm == 2.0) {
    error.square_();
  } else {
    error.pow_(options.norm);
  }
  if (importance.defined()) error.mul_(importance);
  return error.sum(-1);
}

FloatParams with_unit_axis(const FloatParams& params) {
  return {params.scale.unsqueeze(-1), params.zero.defined() ? params.zero.unsqueeze(-1) : at::Tensor()};
}

/// Extremes shrunk to the step of least error. The last axis of `min` and `max` is that of the units.
class ShrinkSearch {
 public:
  ShrinkSearch(const QuantArgs& args, at::ScalarType dtype, const RangeOptions& options)
      : args_(args), dtype_(dtype), options_(options) {}

  double ratio(int step) const { return 1.0 - options_.max_shrink * step / options_.steps; }

  /// One slice whose units are all inside it: returns the best ratio per unit.
  at::Tensor best_ratio(const at::Tensor& w, const at::Tensor& importance, const at::Tensor& min, const at::Tensor& max) const {
    at::Tensor best_error, best;
    for (int step = 0; step <= options_.steps; ++step) {
      const at::Tensor error = error_at(step, w, importance, min, max);
      if (step == 0) {
        best_error = error;
        best = at::ones_like(error);
        continue;
      }
      const at::Tensor better = error < best_error;
      best_error = at::where(better, error, best_error);
      best.masked_fill_(better, ratio(step));
    }
    return best;
  }

  at::Tensor error_at(int step, const at::Tensor& w, const at::Tensor& importance, const at::Tensor& min,
                      const at::Tensor& max) const {
    const FloatParams params = float_params(min * ratio(step), max * ratio(step), args_, dtype_);
    return error_of(w, with_unit_axis(params), args_, options_, importance);
  }

 private:
  const QuantArgs& args_;
  at::ScalarType dtype_;
  const RangeOptions& options_;
};

void shrink_units(const at::Tensor& weight, const Units& units, const ShrinkSearch& search, const at::Tensor& importance,
                  Extremes& range) {
  units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
    at::Tensor min = units.steps_of(range.min, begin, rows), max = units.steps_of(range.max, begin, rows);
    const at::Tensor best = search.best_ratio(units.split(weight.narrow(0, begin, rows)), importance, min, max);
    min.mul_(best);
    max.mul_(best);
  });
}

/// One range for all rows: errors of the slices are added up, in the order of rows, for every step.
void shrink_tensor(const at::Tensor& weight, const Units& units, const ShrinkSearch& search, const at::Tensor& importance,
                   int steps, Extremes& range) {
  int best_step = 0;
  double best_error = 0;
  for (int step = 0; step <= steps; ++step) {
    at::Tensor errors = at::zeros({weight.size(0), 1}, weight.options());
    units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
      errors.narrow(0, begin, rows)
          .copy_(search.error_at(step, units.split(weight.narrow(0, begin, rows)), importance, range.min, range.max));
    });
    const double error = errors.sum(at::kDouble).item<double>();
    if (step == 0 || error < best_error) {
      best_step = step;
      best_error = error;
    }
  }
  range.min = range.min * search.ratio(best_step);
  range.max = range.max * search.ratio(best_step);
}

Params stored(const FloatParams& params, at::ScalarType dtype) {
  return {params.scale.to(dtype), params.zero.defined() ? params.zero.to(at::kChar) : at::Tensor()};
}

FloatParams computed(const Params& params) {
  return {params.scale.to(at::kFloat), params.zero.defined() ? params.zero.to(at::kFloat) : at::Tensor()};
}

Status check(const at::Tensor& weight, const QuantArgs& args) {
  if (weight.dim() != 2) return {Code::kInvalidArgument, "a weight has two dimensions, found " + std::to_string(weight.dim())};
  if (args.type == NumberType::kFloat && (args.bits != 8 || !args.symmetric)) {
    return {Code::kUnsupported, "float codes are 8-bit E4M3 without zero points; found " + std::to_string(args.bits) + " bits"};
  }
  if (args.bits < 2 || args.bits > 8) {
    return {Code::kUnsupported, "codes have 2 to 8 bits, found " + std::to_string(args.bits)};
  }
  return {};
}

/// encode() and decode() take params that choose_params() or a checked decoder made: a mismatch is a programming error.
Units units_of(const QuantArgs& args, int64_t out, int64_t in) {
  Result<Units> units = Units::make(args, out, in);
  TORCH_CHECK(units.ok(), units.status().message());
  return *units;
}

FloatParams slice_of(const FloatParams& params, const Units& units, int64_t begin, int64_t rows) {
  return {units.scales_of(params.scale, begin, rows),
          params.zero.defined() ? units.scales_of(params.zero, begin, rows) : at::Tensor()};
}

}  // namespace

Result<Params> choose_params(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                             const RangeOptions& options) {
  SLIM_TRY(check(weight, args));
  SLIM_ASSIGN(const Units units, Units::make(args, weight.size(0), weight.size(1)));
  SLIM_ASSIGN(Extremes range, extremes(weight, units));
  if (options.fused_abs_max > 0 && units.whole_tensor() && args.symmetric) {
    range.max.fill_(options.fused_abs_max);
    range.min.fill_(-options.fused_abs_max);
  }
  if (options.method == RangeOptions::Method::kMse) {
    const ShrinkSearch search(args, scale_dtype, options);
    const at::Tensor importance =
        options.importance.defined() ? units.split_channels(options.importance.to(weight.device())) : at::Tensor();
    if (units.whole_tensor()) {
      shrink_tensor(weight, units, search, importance, options.steps, range);
    } else {
      shrink_units(weight, units, search, importance, range);
    }
  }
  const FloatParams params = float_params(range.min, range.max, args, scale_dtype);
  if (!at::isfinite(params.scale).all().item<bool>()) {
    return Status(Code::kNumeric, "a scale is too large for the dtype that the output format stores scales in");
  }
  return stored(params, scale_dtype);
}

Params params_from_range(const at::Tensor& low, const at::Tensor& high, const QuantArgs& args, at::ScalarType scale_dtype) {
  return stored(float_params(low, high, args, scale_dtype), scale_dtype);
}

at::Tensor encode(const at::Tensor& weight, const Params& params, const QuantArgs& args, at::ScalarType arithmetic) {
  const Units units = units_of(args, weight.size(0), weight.size(1));
  const FloatParams all = computed(params);
  const auto code_dtype = args.type == NumberType::kFloat ? at::kFloat8_e4m3fn : at::kChar;
  at::Tensor codes = at::empty(weight.sizes(), weight.options().dtype(code_dtype));
  units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
    const at::Tensor w = units.split(weight.narrow(0, begin, rows).to(at::kFloat));
    codes.narrow(0, begin, rows).copy_(units.join(codes_of(w, slice_of(all, units, begin, rows), args, arithmetic), rows));
  });
  return codes;
}

at::Tensor decode(const at::Tensor& codes, const Params& params, const QuantArgs& args) {
  const Units units = units_of(args, codes.size(0), codes.size(1));
  const FloatParams all = computed(params);
  at::Tensor weight = at::empty(codes.sizes(), codes.options().dtype(at::kFloat));
  units.for_each_slice(codes.device(), [&](int64_t begin, int64_t rows) {
    const at::Tensor slice = units.split(codes.narrow(0, begin, rows).to(at::kFloat));
    weight.narrow(0, begin, rows).copy_(units.join(values_of(slice, slice_of(all, units, begin, rows)), rows));
  });
  return weight;
}

at::Tensor decode(const Quantized& quantized) {
  if (!quantized.group_index.defined()) return decode(quantized.codes, {quantized.scale, quantized.zero}, quantized.args);
  // Groups of scattered channels: every channel gets the column of its group, as groups of one.
  const at::Tensor index = quantized.group_index.to(at::kLong);
  const auto per_channel = [&](const at::Tensor& x) { return x.defined() ? x.index_select(1, index) : x; };
  QuantArgs args = quantized.args;
  args.granularity = Granularity::kGroup;
  args.group_size = 1;
  return decode(quantized.codes, {per_channel(quantized.scale), per_channel(quantized.zero)}, args);
}

at::Tensor fake_quantize(const at::Tensor& weight, const Params& params, const QuantArgs& args) {
  const Units units = units_of(args, weight.size(0), weight.size(1));
  const FloatParams all = computed(params);
  at::Tensor result = at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
  units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
    const FloatParams slice = slice_of(all, units, begin, rows);
    const at::Tensor w = units.split(weight.narrow(0, begin, rows).to(at::kFloat));
    result.narrow(0, begin, rows).copy_(units.join(values_of(codes_of(w, slice, args, at::kFloat), slice), rows));
  });
  return result;
}

Result<at::Tensor> fake_quantize(const at::Tensor& weight, const QuantArgs& args, at::ScalarType scale_dtype,
                                 const RangeOptions& options) {
  SLIM_ASSIGN(const Params params, choose_params(weight, args, scale_dtype, options));
  return fake_quantize(weight, params, args);
}

namespace {

/// The scale that an engine finds for an activation at run time: max|x| maps to the largest code (127, 448).
FloatParams dynamic_params(const at::Tensor& units, const QuantArgs& args, bool whole) {
  const auto [low, high] = at::aminmax(whole ? units.reshape({-1}) : units, whole ? 0 : -1, /*keepdim=*/true);
  FloatParams params;
  const auto nonzero = [](const at::Tensor& scale) { return at::where(scale == 0, at::ones_like(scale), scale); };
  if (args.symmetric) {
    params.scale = nonzero(at::maximum(low.neg(), high) / max_value(args));
    return params;
  }
  const at::Tensor min = low.clamp_max(0), max = high.clamp_min(0);
  params.scale = nonzero((max - min) / (max_value(args) - min_value(args)));
  params.zero = (min_value(args) - min / params.scale).round_().clamp_(min_value(args), max_value(args));
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
  const FloatParams params = args.dynamic ? dynamic_params(units, args, args.granularity == Granularity::kTensor)
                                          : computed({scale, zero});
  at::Tensor result = values_of(codes_of(units, params, args, at::kFloat), params);
  if (grouped) result = result.reshape({result.size(0), -1}).narrow(1, 0, features);
  return result.reshape(x.sizes()).to(x.scalar_type());
}

}  // namespace slim::quant
