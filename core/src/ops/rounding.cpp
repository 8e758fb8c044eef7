// Ranges, codes and their error: reference kernels on whole-tensor operators, for any device.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/call.h"
#include "quant/arithmetic.h"
#include "quant/units.h"
#include "slim/ops.hpp"

namespace slim::ops {
namespace {

using quant::code_range;
using quant::CodeRange;
using quant::FloatParams;
using quant::Units;

struct Extremes {
  at::Tensor min, max;  // [scale rows, scale columns]
};

Extremes extremes(const at::Tensor& weight, const Units& units) {
  const int64_t steps = (weight.size(0) + units.row_step() - 1) / units.row_step();
  at::Tensor min = at::empty({steps, units.scale_columns()}, weight.options().dtype(at::kFloat)),
             max = at::empty_like(min);
  units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
    const auto [low, high] = at::aminmax(units.split(weight.narrow(0, begin, rows).to(at::kFloat)), -1);
    units.steps_of(min, begin, rows).copy_(low);
    units.steps_of(max, begin, rows).copy_(high);
  });
  if (units.whole_tensor()) return {min.min().view({1, 1}), max.max().view({1, 1})};
  return {min, max};
}

/// Extremes shrunk to the step of least error. The last axis of `min` and `max` is that of the units.
class ShrinkSearch {
 public:
  ShrinkSearch(const Rounding& rounding, const RangeSearch& search)
      : codes_(code_range(rounding)), dtype_(rounding.scale_dtype), search_(search) {}

  double ratio(int64_t step) const {
    return 1.0 - search_.max_shrink * static_cast<double>(step) / static_cast<double>(search_.steps);
  }

  void run(const at::Tensor& weight, const Units& units, Extremes& range) const {
    const at::Tensor importance =
        search_.importance.defined()
            ? units.split_channels(search_.importance.to(weight.device(), at::kFloat))
            : at::Tensor();
    if (units.whole_tensor()) {
      shrink_tensor(weight, units, importance, range);
    } else {
      shrink_units(weight, units, importance, range);
    }
  }

 private:
  void shrink_units(const at::Tensor& weight, const Units& units, const at::Tensor& importance,
                    Extremes& range) const {
    units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
      at::Tensor min = units.steps_of(range.min, begin, rows), max = units.steps_of(range.max, begin, rows);
      const at::Tensor best =
          best_ratio(units.split(weight.narrow(0, begin, rows).to(at::kFloat)), importance, min, max);
      min.mul_(best);
      max.mul_(best);
    });
  }

  /// One range for all rows: errors of the slices are added up, in the order of rows, for every step.
  void shrink_tensor(const at::Tensor& weight, const Units& units, const at::Tensor& importance,
                     Extremes& range) const {
    int64_t best_step = 0;
    double best_error = 0;
    for (int64_t step = 0; step <= search_.steps; ++step) {
      at::Tensor errors = at::zeros({weight.size(0), 1}, range.min.options());
      units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
        const at::Tensor w = units.split(weight.narrow(0, begin, rows).to(at::kFloat));
        errors.narrow(0, begin, rows).copy_(error_at(step, w, importance, range.min, range.max));
      });
      const double error = errors.sum(at::kDouble).item<double>();
      if (step == 0 || error < best_error) {
        best_step = step;
        best_error = error;
      }
    }
    range.min = range.min * ratio(best_step);
    range.max = range.max * ratio(best_step);
  }

  /// One slice whose units are all inside it: the best ratio per unit.
  at::Tensor best_ratio(const at::Tensor& w, const at::Tensor& importance, const at::Tensor& min,
                        const at::Tensor& max) const {
    at::Tensor best_error, best;
    for (int64_t step = 0; step <= search_.steps; ++step) {
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

  /// Σ importance |ŵ - w|^norm of each unit [steps, units].
  at::Tensor error_at(int64_t step, const at::Tensor& w, const at::Tensor& importance, const at::Tensor& min,
                      const at::Tensor& max) const {
    FloatParams params = quant::float_params(min * ratio(step), max * ratio(step), codes_, dtype_);
    params.scale = params.scale.unsqueeze(-1);
    if (params.zero.defined()) params.zero = params.zero.unsqueeze(-1);
    at::Tensor error =
        quant::values_of(quant::codes_of(w, params, codes_, at::kFloat), params).sub_(w).abs_();
    if (search_.norm == 2.0) {
      error.square_();
    } else {
      error.pow_(search_.norm);
    }
    if (importance.defined()) error.mul_(importance);
    return error.sum(-1);
  }

  CodeRange codes_;
  at::ScalarType dtype_;
  const RangeSearch& search_;
};

FloatParams slice_of(const FloatParams& params, const Units& units, int64_t begin, int64_t rows) {
  return {units.scales_of(params.scale, begin, rows),
          params.zero.defined() ? units.scales_of(params.zero, begin, rows) : at::Tensor()};
}

at::Tensor codes_reference(const at::Tensor& weight, const FloatParams& params, const Rounding& rounding,
                           at::ScalarType arithmetic) {
  const Units units = Units::of(rounding.unit_rows, rounding.unit_columns, weight.size(0), weight.size(1));
  at::Tensor codes =
      at::empty(weight.sizes(), weight.options().dtype(rounding.e4m3 ? at::kFloat8_e4m3fn : at::kChar));
  units.for_each_slice(weight.device(), [&](int64_t begin, int64_t rows) {
    const at::Tensor w = units.split(weight.narrow(0, begin, rows).to(at::kFloat));
    const at::Tensor slice =
        quant::codes_of(w, slice_of(params, units, begin, rows), code_range(rounding), arithmetic);
    codes.narrow(0, begin, rows).copy_(units.join(slice, rows));
  });
  return codes;
}

std::tuple<at::Tensor, at::Tensor> choose_params_reference(const at::Tensor& weight, int64_t unit_rows,
                                                           int64_t unit_columns, int64_t bits, bool e4m3,
                                                           bool symmetric, at::ScalarType scale_dtype,
                                                           const OptionalTensor& importance,
                                                           double max_shrink, double norm, int64_t steps,
                                                           double abs_max) {
  const Rounding rounding{unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype};
  const Units units = Units::of(unit_rows, unit_columns, weight.size(0), weight.size(1));
  Extremes range = extremes(weight, units);
  if (abs_max > 0) {
    range.max.fill_(abs_max);
    range.min.fill_(-abs_max);
  }
  const RangeSearch search{defined_or_empty(importance), max_shrink, norm, steps, abs_max};
  if (steps > 0) ShrinkSearch(rounding, search).run(weight, units, range);
  // clamp() would turn the NaN of one end into a number of the other.
  const at::Tensor finite = at::isfinite(range.min).logical_and_(at::isfinite(range.max));
  FloatParams params = quant::float_params(range.min, range.max, code_range(rounding), scale_dtype);
  params.scale.masked_fill_(finite.logical_not_(), std::numeric_limits<double>::quiet_NaN());
  return {params.scale, params.zero};
}

at::Tensor encode_reference(const at::Tensor& weight, const at::Tensor& scale, const OptionalTensor& zero,
                            int64_t unit_rows, int64_t unit_columns, int64_t bits,
                            at::ScalarType arithmetic) {
  const Rounding rounding{unit_rows, unit_columns, bits, false, !zero.has_value(), at::kFloat};
  return codes_reference(weight, {scale, defined_or_empty(zero)}, rounding, arithmetic);
}

at::Tensor cast_e4m3_reference(const at::Tensor& weight, const at::Tensor& scale, int64_t unit_rows,
                               int64_t unit_columns, at::ScalarType arithmetic) {
  return codes_reference(weight, {scale, {}}, {unit_rows, unit_columns, 8, true, true, at::kFloat},
                         arithmetic);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> round_units_reference(
    const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3,
    bool symmetric, at::ScalarType scale_dtype, at::ScalarType arithmetic, const OptionalTensor& importance,
    double max_shrink, double norm, int64_t steps, double abs_max) {
  const Rounding rounding{unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype};
  const ScaleZero params =
      choose_params(weight, rounding, {defined_or_empty(importance), max_shrink, norm, steps, abs_max});
  return {encode(weight, params, rounding, arithmetic), params.scale, params.zero};
}

at::Tensor decode_reference(const at::Tensor& codes, const at::Tensor& scale, const OptionalTensor& zero,
                            int64_t unit_rows, int64_t unit_columns) {
  const Units units = Units::of(unit_rows, unit_columns, codes.size(0), codes.size(1));
  const FloatParams params{scale, defined_or_empty(zero)};
  at::Tensor weight = at::empty(codes.sizes(), codes.options().dtype(at::kFloat));
  units.for_each_slice(codes.device(), [&](int64_t begin, int64_t rows) {
    const at::Tensor slice = units.split(codes.narrow(0, begin, rows).to(at::kFloat));
    weight.narrow(0, begin, rows)
        .copy_(units.join(quant::values_of(slice, slice_of(params, units, begin, rows)), rows));
  });
  return weight;
}

at::Tensor rounding_error_reference(const at::Tensor& weight, const at::Tensor& codes,
                                    const at::Tensor& scale, const OptionalTensor& zero, int64_t unit_rows,
                                    int64_t unit_columns) {
  const at::Tensor before = weight.to(at::kFloat);
  const at::Tensor after = decode(codes, {scale, defined_or_empty(zero)}, {unit_rows, unit_columns});
  return at::stack({(after - before).square_().sum(at::kDouble), before.square().sum(at::kDouble)}).cpu();
}

}  // namespace

ScaleZero choose_params(const at::Tensor& weight, const Rounding& rounding, const RangeSearch& search) {
  using Signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, int64_t, int64_t, int64_t, bool,
                                                       bool, at::ScalarType, const OptionalTensor&, double,
                                                       double, int64_t, double);
  static const Operator<Signature> op("slim::choose_params");
  auto [scale, zero] = op(weight, rounding.unit_rows, rounding.unit_columns, rounding.bits, rounding.e4m3,
                          rounding.symmetric, rounding.scale_dtype, optional(search.importance),
                          search.max_shrink, search.norm, search.steps, search.abs_max);
  return {scale, zero};
}

at::Tensor encode(const at::Tensor& weight, const ScaleZero& params, const Rounding& rounding,
                  at::ScalarType arithmetic) {
  if (rounding.e4m3) {
    using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, at::ScalarType);
    static const Operator<Signature> op("slim::cast_e4m3");
    return op(weight, params.scale, rounding.unit_rows, rounding.unit_columns, arithmetic);
  }
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, int64_t, int64_t,
                               int64_t, at::ScalarType);
  static const Operator<Signature> op("slim::encode");
  return op(weight, params.scale, optional(params.zero), rounding.unit_rows, rounding.unit_columns,
            rounding.bits, arithmetic);
}

RoundedUnits round_units(const at::Tensor& weight, const Rounding& rounding, const RangeSearch& search,
                         at::ScalarType arithmetic) {
  using Signature = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, int64_t, int64_t, int64_t, bool, bool, at::ScalarType, at::ScalarType,
      const OptionalTensor&, double, double, int64_t, double);
  static const Operator<Signature> op("slim::round_units");
  auto [codes, scale, zero] =
      op(weight, rounding.unit_rows, rounding.unit_columns, rounding.bits, rounding.e4m3, rounding.symmetric,
         rounding.scale_dtype, arithmetic, optional(search.importance), search.max_shrink, search.norm,
         search.steps, search.abs_max);
  return {codes, scale, zero};
}

at::Tensor decode(const at::Tensor& codes, const ScaleZero& params, const Rounding& rounding) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, int64_t, int64_t);
  static const Operator<Signature> op("slim::decode");
  return op(codes, params.scale, optional(params.zero), rounding.unit_rows, rounding.unit_columns);
}

RoundingError rounding_error(const at::Tensor& weight, const at::Tensor& codes, const ScaleZero& params,
                             const Rounding& rounding) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                               int64_t, int64_t);
  static const Operator<Signature> op("slim::rounding_error");
  const at::Tensor sums =
      op(weight, codes, params.scale, optional(params.zero), rounding.unit_rows, rounding.unit_columns);
  return {sums[0].item<double>(), sums[1].item<double>()};
}

}  // namespace slim::ops

TORCH_LIBRARY_FRAGMENT(slim, m) {
  m.def(
      "choose_params(Tensor weight, int unit_rows, int unit_columns, int bits, bool e4m3, bool symmetric, "
      "ScalarType scale_dtype, "
      "Tensor? importance, float max_shrink, float norm, int steps, float abs_max) -> (Tensor scale, Tensor "
      "zero)");
  m.def(
      "encode(Tensor weight, Tensor scale, Tensor? zero, int unit_rows, int unit_columns, int bits, "
      "ScalarType arithmetic) -> Tensor");
  m.def(
      "cast_e4m3(Tensor weight, Tensor scale, int unit_rows, int unit_columns, ScalarType arithmetic) -> "
      "Tensor");
  m.def(
      "round_units(Tensor weight, int unit_rows, int unit_columns, int bits, bool e4m3, bool symmetric, "
      "ScalarType scale_dtype, "
      "ScalarType arithmetic, Tensor? importance, float max_shrink, float norm, int steps, float abs_max) -> "
      "(Tensor codes, Tensor scale, Tensor zero)");
  m.def("decode(Tensor codes, Tensor scale, Tensor? zero, int unit_rows, int unit_columns) -> Tensor");
  m.def(
      "rounding_error(Tensor weight, Tensor codes, Tensor scale, Tensor? zero, int unit_rows, int "
      "unit_columns) -> Tensor");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("choose_params", slim::ops::choose_params_reference);
  m.impl("encode", slim::ops::encode_reference);
  m.impl("cast_e4m3", slim::ops::cast_e4m3_reference);
  m.impl("round_units", slim::ops::round_units_reference);
  m.impl("decode", slim::ops::decode_reference);
  m.impl("rounding_error", slim::ops::rounding_error_reference);
}
