// Rounding that says how far the weight moved: for any device, made of the two operators.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/call.h"
#include "slim/ops.hpp"

namespace slim::ops {
namespace {

using Measured = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Measured round_units_measured_reference(const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns,
                                        int64_t bits, bool e4m3, bool symmetric, at::ScalarType scale_dtype,
                                        at::ScalarType arithmetic, const OptionalTensor& importance,
                                        double max_shrink, double norm, int64_t steps, double abs_max) {
  const Rounding rounding{unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype};
  const RoundedUnits units = round_units(
      weight, rounding, {defined_or_empty(importance), max_shrink, norm, steps, abs_max}, arithmetic);
  const RoundingError error = rounding_error(weight, units.codes, {units.scale, units.zero}, rounding);
  return {units.codes, units.scale, units.zero, at::tensor({error.error, error.weight}, at::kDouble)};
}

}  // namespace

MeasuredUnits round_units_measured(const at::Tensor& weight, const Rounding& rounding,
                                   const RangeSearch& search, at::ScalarType arithmetic) {
  using Signature = Measured(const at::Tensor&, int64_t, int64_t, int64_t, bool, bool, at::ScalarType,
                             at::ScalarType, const OptionalTensor&, double, double, int64_t, double);
  static const Operator<Signature> op("slim::round_units_measured");
  auto [codes, scale, zero, error] =
      op(weight, rounding.unit_rows, rounding.unit_columns, rounding.bits, rounding.e4m3, rounding.symmetric,
         rounding.scale_dtype, arithmetic, optional(search.importance), search.max_shrink, search.norm,
         search.steps, search.abs_max);
  return {{codes, scale, zero}, {error[0].item<double>(), error[1].item<double>()}};
}

}  // namespace slim::ops

TORCH_LIBRARY_FRAGMENT(slim, m) {
  m.def(
      "round_units_measured(Tensor weight, int unit_rows, int unit_columns, int bits, bool e4m3, bool "
      "symmetric, ScalarType scale_dtype, "
      "ScalarType arithmetic, Tensor? importance, float max_shrink, float norm, int steps, float abs_max) -> "
      "(Tensor codes, Tensor scale, Tensor zero, Tensor error)");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("round_units_measured", slim::ops::round_units_measured_reference);
}
