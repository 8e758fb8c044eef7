// Ranges, codes and their error: memory and threads around the kernels of slim/ops.hpp.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/arguments.hpp"
#include "in_use.h"
#include "slim/parallel.hpp"

namespace slim::cpu {
namespace {

using namespace kernels;

/// How the units of a weight lie, and the work on them shared out by steps (rows of units).
struct Layout {
  int64_t rows, columns, unit_rows, unit_columns;
  int64_t steps() const { return ceil_div(rows, unit_rows); }
  int64_t units() const { return ceil_div(columns, unit_columns); }
  bool whole() const { return steps() == 1 && units() == 1; }
  Step step(int64_t index) const {
    return {index * unit_rows, std::min(unit_rows, rows - index * unit_rows), unit_columns};
  }

  template <class F>
  void for_each_step(F&& f) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, unit_rows * columns));
    parallel_for(0, steps(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i, step(i));
    });
  }
  /// The rows of a unit that is the whole tensor, or of any other, one by one.
  template <class F>
  void for_each_row(F&& f) const {
    parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t row = begin; row < end; ++row)
                     f(row, row / unit_rows, Step{row, 1, unit_columns});
                 });
  }
};

Layout layout(const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns) {
  TORCH_CHECK(weight.dim() == 2 && unit_rows > 0 && unit_columns > 0,
              "expected a matrix and units of a positive size");
  return {weight.size(0), weight.size(1), unit_rows,
          std::max<int64_t>(1, std::min(unit_columns, weight.size(1)))};
}

struct Params : kernels::UnitParams {
  float* scale_row(int64_t step) const { return scale.mutable_data_ptr<float>() + step * scale.size(1); }
  float* zero_row(int64_t step) const {
    return zero.defined() ? zero.mutable_data_ptr<float>() + step * scale.size(1) : nullptr;
  }
};

Params empty_params(const Layout& layout, const CodeRange& codes) {
  const at::Tensor scale = at::empty({layout.steps(), layout.units()}, at::kFloat);
  return {{scale, codes.symmetric ? at::Tensor() : at::empty_like(scale)}};
}

Params contiguous_params(const at::Tensor& scale, const OptionalTensor& zero, const Layout& layout) {
  return {kernels::unit_params(scale, zero, layout.steps(), layout.units())};
}

/// Everything that finding ranges needs.
struct RangeFinder {
  Matrix weight;
  Layout layout;
  CodeRange codes;
  Float scale_type;
  Shrink shrink;
  double abs_max = 0;

  /// Scales and zeros of one step of units. scratch [2 * units].
  void find(const Step& step, float* scratch, float* scale, float* zero) const {
    const Kernels& k = kernels_in_use();
    float *low = scratch, *high = scratch + layout.units();
    k.extremes(weight, step, low, high);
    if (shrink.steps > 0) k.shrink(weight, step, shrink, codes, scale_type, low, high);
    k.params(low, high, layout.units(), codes, scale_type, scale, zero);
  }

  /// One unit: its rows are shared out.
  void find_whole(float* scale, float* zero) const {
    const Kernels& k = kernels_in_use();
    float ends[2] = {static_cast<float>(-abs_max), static_cast<float>(abs_max)};
    if (!(abs_max > 0)) whole_extremes(ends);
    float best = 1;
    double best_error = 0;
    for (int64_t i = 0; shrink.steps > 0 && i <= shrink.steps; ++i) {
      const auto ratio = static_cast<float>(1.0 - shrink.max_shrink * static_cast<double>(i) /
                                                      static_cast<double>(shrink.steps));
      const float low = ends[0] * ratio, high = ends[1] * ratio;
      float s = 0, z = 0;
      k.params(&low, &high, 1, codes, scale_type, &s, &z);
      at::Tensor errors = at::empty({layout.rows}, at::kDouble);
      double* const error = errors.mutable_data_ptr<double>();
      layout.for_each_row([&](int64_t row, int64_t, const Step& step) {
        error[row] = k.shared_error(weight, step, shrink, codes, s, z);
      });
      const double sum = std::accumulate(error, error + layout.rows, 0.0);
      if (i == 0 || sum < best_error) {
        best_error = sum;
        best = ratio;
      }
    }
    const float low = ends[0] * best, high = ends[1] * best;
    k.params(&low, &high, 1, codes, scale_type, scale, zero);
  }

 private:
  void whole_extremes(float* ends) const {
    const Kernels& k = kernels_in_use();
    std::vector<float> low(static_cast<size_t>(layout.rows)), high(low.size());
    layout.for_each_row([&](int64_t row, int64_t, const Step& step) {
      k.extremes(weight, step, &low[static_cast<size_t>(row)], &high[static_cast<size_t>(row)]);
    });
    // NaN is found by comparison with itself: min and max of the standard library would lose it.
    const auto nan = std::find_if(low.begin(), low.end(), [](float x) { return x != x; });
    ends[0] = nan != low.end() ? *nan : *std::min_element(low.begin(), low.end());
    ends[1] = nan != low.end() ? *nan : *std::max_element(high.begin(), high.end());
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> round_units_with(
    const at::Tensor& input, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3, bool symmetric,
    at::ScalarType scale_dtype, std::optional<at::ScalarType> arithmetic, const OptionalTensor& importance,
    double max_shrink, double norm, int64_t steps, double abs_max, const at::Tensor& row_sums = {}) {
  const at::Tensor weight = with_contiguous_rows(input);
  const at::Tensor channels = importance ? importance->to(at::kFloat).contiguous() : at::Tensor();
  const RangeFinder finder{
      matrix(weight),          layout(weight, unit_rows, unit_columns),     code_range(bits, e4m3, symmetric),
      float_type(scale_dtype), {floats(channels), max_shrink, norm, steps}, abs_max};
  const Layout& units = finder.layout;
  const Params params = empty_params(units, finder.codes);
  at::Tensor codes;
  if (arithmetic)
    codes = at::empty(weight.sizes(), weight.options().dtype(e4m3 ? at::kFloat8_e4m3fn : at::kChar));
  uint8_t* const bytes = arithmetic ? static_cast<uint8_t*>(codes.mutable_data_ptr()) : nullptr;
  const Float type = float_type(arithmetic.value_or(at::kFloat));
  double* const sums = row_sums.defined() ? row_sums.mutable_data_ptr<double>() : nullptr;
  const auto encode_step = [&](int64_t index, const Step& step) {
    kernels_in_use().encode(finder.weight, step, params.scale_row(index), params.zero_row(index),
                            finder.codes, type, bytes + step.row * units.columns,
                            sums ? sums + 2 * step.row : nullptr);
  };
  if (weight.numel() == 0) return {codes, params.scale, params.zero};
  if (units.whole()) {
    finder.find_whole(params.scale_row(0), params.zero_row(0));
    if (bytes)
      units.for_each_row([&](int64_t, int64_t index, const Step& step) { encode_step(index, step); });
    return {codes, params.scale, params.zero};
  }
  units.for_each_step([&](int64_t index, const Step& step) {
    std::vector<float> scratch(static_cast<size_t>(2 * units.units()));
    finder.find(step, scratch.data(), params.scale_row(index), params.zero_row(index));
    if (bytes) encode_step(index, step);
  });
  return {codes, params.scale, params.zero};
}

std::tuple<at::Tensor, at::Tensor> choose_params(const at::Tensor& weight, int64_t unit_rows,
                                                 int64_t unit_columns, int64_t bits, bool e4m3,
                                                 bool symmetric, at::ScalarType scale_dtype,
                                                 const OptionalTensor& importance, double max_shrink,
                                                 double norm, int64_t steps, double abs_max) {
  auto [codes, scale, zero] =
      round_units_with(weight, unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype, std::nullopt,
                       importance, max_shrink, norm, steps, abs_max);
  return {scale, zero};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> round_units(
    const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3,
    bool symmetric, at::ScalarType scale_dtype, at::ScalarType arithmetic, const OptionalTensor& importance,
    double max_shrink, double norm, int64_t steps, double abs_max) {
  return round_units_with(weight, unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype, arithmetic,
                          importance, max_shrink, norm, steps, abs_max);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> round_units_measured(
    const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3,
    bool symmetric, at::ScalarType scale_dtype, at::ScalarType arithmetic, const OptionalTensor& importance,
    double max_shrink, double norm, int64_t steps, double abs_max) {
  const at::Tensor rows =
      at::zeros({weight.size(0), 2}, at::kDouble);  // added up in their order, whatever the threads
  auto [codes, scale, zero] =
      round_units_with(weight, unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype, arithmetic,
                       importance, max_shrink, norm, steps, abs_max, rows);
  return {codes, scale, zero, rows.sum(0)};
}

at::Tensor encode_with(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero,
                       int64_t unit_rows, int64_t unit_columns, const CodeRange& range,
                       at::ScalarType arithmetic) {
  const at::Tensor weight = with_contiguous_rows(input);
  const Layout units = layout(weight, unit_rows, unit_columns);
  const Params params = contiguous_params(scale, zero, units);
  at::Tensor codes =
      at::empty(weight.sizes(), weight.options().dtype(range.is_e4m3 ? at::kFloat8_e4m3fn : at::kChar));
  auto* const bytes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const Matrix from = matrix(weight);
  const Float type = float_type(arithmetic);
  units.for_each_row([&](int64_t row, int64_t index, const Step& step) {
    kernels_in_use().encode(from, step, params.scale_row(index), params.zero_row(index), range, type,
                            bytes + row * units.columns, nullptr);
  });
  return codes;
}

at::Tensor decode(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero,
                  int64_t unit_rows, int64_t unit_columns) {
  const at::Tensor codes = input.contiguous();
  const Layout units = layout(codes, unit_rows, unit_columns);
  const Params params = contiguous_params(scale, zero, units);
  const CodeRange range = range_of_codes(codes, zero);
  at::Tensor weight = at::empty(codes.sizes(), codes.options().dtype(at::kFloat));
  const auto* const from = static_cast<const uint8_t*>(codes.const_data_ptr());
  float* const to = weight.mutable_data_ptr<float>();
  units.for_each_row([&](int64_t row, int64_t index, const Step& step) {
    kernels_in_use().decode(from + row * units.columns, units.columns, step, params.scale_row(index),
                            params.zero_row(index), range, to + row * units.columns);
  });
  return weight;
}

at::Tensor rounding_error(const at::Tensor& input, const at::Tensor& code_input, const at::Tensor& scale,
                          const OptionalTensor& zero, int64_t unit_rows, int64_t unit_columns) {
  const at::Tensor weight = with_contiguous_rows(input), codes = code_input.contiguous();
  const Layout units = layout(weight, unit_rows, unit_columns);
  const Params params = contiguous_params(scale, zero, units);
  const CodeRange range = range_of_codes(codes, zero);
  const Matrix before = matrix(weight);
  const auto* const bytes = static_cast<const uint8_t*>(codes.const_data_ptr());
  at::Tensor rows = at::zeros({units.rows, 2}, at::kDouble);  // added up in their order, whatever the threads
  double* const sums = rows.mutable_data_ptr<double>();
  units.for_each_row([&](int64_t row, int64_t index, const Step& step) {
    kernels_in_use().error(before, bytes + row * units.columns, step, params.scale_row(index),
                           params.zero_row(index), range, sums + 2 * row);
  });
  return rows.sum(0);
}

}  // namespace

TORCH_LIBRARY_IMPL(slim, CPU, m) {
  m.impl("choose_params", choose_params);
  m.impl("encode", encode<encode_with>);
  m.impl("cast_e4m3", cast_e4m3<encode_with>);
  m.impl("round_units", round_units);
  m.impl("round_units_measured", round_units_measured);
  m.impl("decode", decode);
  m.impl("rounding_error", rounding_error);
}

}  // namespace slim::cpu
