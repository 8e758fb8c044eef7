// The cpu backend's operators: checks, memory and threads around the kernels of the best instruction set.
#include "ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <string_view>

#include "kernels.hpp"

namespace slim::cpu {
namespace {

using kernels::CodeRange;
using kernels::Float;
using kernels::Kernels;
using kernels::Matrix;
using kernels::Shrink;
using kernels::Step;
using OptionalTensor = std::optional<at::Tensor>;

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels_in_use() {
  if (const Kernels* found = chosen.load(std::memory_order_acquire)) return *found;
  use_instruction_set(instruction_sets().front());  // the operators may be called before the backend is opened
  return *chosen.load(std::memory_order_acquire);
}

/// Elements that are worth a thread's start.
constexpr int64_t kGrain = int64_t{1} << 15;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Float float_type(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, "expected fp32, bf16 or fp16, found ", type);
  return type == at::kFloat ? Float::kFloat : type == at::kBFloat16 ? Float::kBFloat16 : Float::kHalf;
}

CodeRange code_range(int64_t bits, bool e4m3, bool symmetric) {
  if (e4m3) return {-448, 448, true, true};
  const auto half = static_cast<float>(int64_t{1} << (bits - 1));
  return {-half, half - 1, false, symmetric};
}

/// A matrix whose rows are contiguous.
at::Tensor with_contiguous_rows(const at::Tensor& x) { return x.dim() == 2 && x.stride(1) == 1 ? x : x.contiguous(); }

Matrix matrix(const at::Tensor& x) { return {x.const_data_ptr(), float_type(x.scalar_type()), x.size(1), x.stride(0)}; }

const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

/// How the units of a weight lie, and the work on them shared out by steps (rows of units).
struct Layout {
  int64_t rows, columns, unit_rows, unit_columns;
  int64_t steps() const { return ceil_div(rows, unit_rows); }
  int64_t units() const { return ceil_div(columns, unit_columns); }
  bool whole() const { return steps() == 1 && units() == 1; }
  Step step(int64_t index) const { return {index * unit_rows, std::min(unit_rows, rows - index * unit_rows), unit_columns}; }

  template <class F>
  void for_each_step(F&& f) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, unit_rows * columns));
    at::parallel_for(0, steps(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i, step(i));
    });
  }
  /// The rows of a unit that is the whole tensor, or of any other, one by one.
  template <class F>
  void for_each_row(F&& f) const {
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) f(row, row / unit_rows, Step{row, 1, unit_columns});
    });
  }
};

Layout layout(const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns) {
  TORCH_CHECK(weight.dim() == 2 && unit_rows > 0 && unit_columns > 0, "expected a matrix and units of a positive size");
  return {weight.size(0), weight.size(1), unit_rows, std::max<int64_t>(1, std::min(unit_columns, weight.size(1)))};
}

struct Params {
  at::Tensor scale, zero;
  float* scale_row(int64_t step) const { return scale.mutable_data_ptr<float>() + step * scale.size(1); }
  float* zero_row(int64_t step) const { return zero.defined() ? zero.mutable_data_ptr<float>() + step * scale.size(1) : nullptr; }
};

Params empty_params(const Layout& layout, const CodeRange& codes) {
  const at::Tensor scale = at::empty({layout.steps(), layout.units()}, at::kFloat);
  return {scale, codes.symmetric ? at::Tensor() : at::empty_like(scale)};
}

Params contiguous_params(const at::Tensor& scale, const OptionalTensor& zero, const Layout& layout) {
  TORCH_CHECK(scale.scalar_type() == at::kFloat && scale.numel() == layout.steps() * layout.units(),
              "expected fp32 scales [", layout.steps(), ", ", layout.units(), "], found ", scale.sizes());
  TORCH_CHECK(!zero || (zero->scalar_type() == at::kFloat && zero->numel() == scale.numel()), "zero differs from scale in shape or type");
  const std::vector<int64_t> shape{layout.steps(), layout.units()};
  return {scale.reshape(shape).contiguous(), zero ? zero->reshape(shape).contiguous() : at::Tensor()};
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
      const auto ratio = static_cast<float>(1.0 - shrink.max_shrink * static_cast<double>(i) / static_cast<double>(shrink.steps));
      const float low = ends[0] * ratio, high = ends[1] * ratio;
      float s = 0, z = 0;
      k.params(&low, &high, 1, codes, scale_type, &s, &z);
      at::Tensor errors = at::empty({layout.rows}, at::kDouble);
      double* const error = errors.mutable_data_ptr<double>();
      layout.for_each_row([&](int64_t row, int64_t, const Step& step) { error[row] = k.shared_error(weight, step, shrink, codes, s, z); });
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> round_units_with(const at::Tensor& input, int64_t unit_rows, int64_t unit_columns,
                                                                int64_t bits, bool e4m3, bool symmetric, at::ScalarType scale_dtype,
                                                                std::optional<at::ScalarType> arithmetic,
                                                                const OptionalTensor& importance, double max_shrink, double norm,
                                                                int64_t steps, double abs_max) {
  const at::Tensor weight = with_contiguous_rows(input);
  const at::Tensor channels = importance ? importance->to(at::kFloat).contiguous() : at::Tensor();
  const RangeFinder finder{matrix(weight), layout(weight, unit_rows, unit_columns), code_range(bits, e4m3, symmetric),
                           float_type(scale_dtype), {floats(channels), max_shrink, norm, steps}, abs_max};
  const Layout& units = finder.layout;
  const Params params = empty_params(units, finder.codes);
  at::Tensor codes;
  if (arithmetic) codes = at::empty(weight.sizes(), weight.options().dtype(e4m3 ? at::kFloat8_e4m3fn : at::kChar));
  uint8_t* const bytes = arithmetic ? static_cast<uint8_t*>(codes.mutable_data_ptr()) : nullptr;
  const Float type = float_type(arithmetic.value_or(at::kFloat));
  const auto encode_step = [&](int64_t index, const Step& step) {
    kernels_in_use().encode(finder.weight, step, params.scale_row(index), params.zero_row(index), finder.codes, type,
                            bytes + step.row * units.columns);
  };
  if (weight.numel() == 0) return {codes, params.scale, params.zero};
  if (units.whole()) {
    finder.find_whole(params.scale_row(0), params.zero_row(0));
    if (bytes) units.for_each_row([&](int64_t, int64_t index, const Step& step) { encode_step(index, step); });
    return {codes, params.scale, params.zero};
  }
  units.for_each_step([&](int64_t index, const Step& step) {
    std::vector<float> scratch(static_cast<size_t>(2 * units.units()));
    finder.find(step, scratch.data(), params.scale_row(index), params.zero_row(index));
    if (bytes) encode_step(index, step);
  });
  return {codes, params.scale, params.zero};
}

std::tuple<at::Tensor, at::Tensor> choose_params(const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns, int64_t bits, bool e4m3,
                                                 bool symmetric, at::ScalarType scale_dtype, const OptionalTensor& importance,
                                                 double max_shrink, double norm, int64_t steps, double abs_max) {
  auto [codes, scale, zero] = round_units_with(weight, unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype, std::nullopt,
                                               importance, max_shrink, norm, steps, abs_max);
  return {scale, zero};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> round_units(const at::Tensor& weight, int64_t unit_rows, int64_t unit_columns, int64_t bits,
                                                           bool e4m3, bool symmetric, at::ScalarType scale_dtype,
                                                           at::ScalarType arithmetic, const OptionalTensor& importance,
                                                           double max_shrink, double norm, int64_t steps, double abs_max) {
  return round_units_with(weight, unit_rows, unit_columns, bits, e4m3, symmetric, scale_dtype, arithmetic, importance, max_shrink, norm,
                          steps, abs_max);
}

at::Tensor encode_with(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero, int64_t unit_rows,
                       int64_t unit_columns, const CodeRange& range, at::ScalarType arithmetic) {
  const at::Tensor weight = with_contiguous_rows(input);
  const Layout units = layout(weight, unit_rows, unit_columns);
  const Params params = contiguous_params(scale, zero, units);
  at::Tensor codes = at::empty(weight.sizes(), weight.options().dtype(range.is_e4m3 ? at::kFloat8_e4m3fn : at::kChar));
  auto* const bytes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const Matrix from = matrix(weight);
  const Float type = float_type(arithmetic);
  units.for_each_row([&](int64_t row, int64_t index, const Step& step) {
    kernels_in_use().encode(from, step, params.scale_row(index), params.zero_row(index), range, type, bytes + row * units.columns);
  });
  return codes;
}

at::Tensor encode(const at::Tensor& weight, const at::Tensor& scale, const OptionalTensor& zero, int64_t unit_rows, int64_t unit_columns,
                  int64_t bits, at::ScalarType arithmetic) {
  return encode_with(weight, scale, zero, unit_rows, unit_columns, code_range(bits, false, !zero), arithmetic);
}

at::Tensor cast_e4m3(const at::Tensor& weight, const at::Tensor& scale, int64_t unit_rows, int64_t unit_columns, at::ScalarType arithmetic) {
  return encode_with(weight, scale, std::nullopt, unit_rows, unit_columns, code_range(8, true, true), arithmetic);
}

CodeRange range_of_codes(const at::Tensor& codes, const OptionalTensor& zero) {
  TORCH_CHECK(codes.scalar_type() == at::kChar || codes.scalar_type() == at::kFloat8_e4m3fn, "codes are int8 or float8_e4m3fn");
  return code_range(8, codes.scalar_type() == at::kFloat8_e4m3fn, !zero);
}

at::Tensor decode(const at::Tensor& input, const at::Tensor& scale, const OptionalTensor& zero, int64_t unit_rows, int64_t unit_columns) {
  const at::Tensor codes = input.contiguous();
  const Layout units = layout(codes, unit_rows, unit_columns);
  const Params params = contiguous_params(scale, zero, units);
  const CodeRange range = range_of_codes(codes, zero);
  at::Tensor weight = at::empty(codes.sizes(), codes.options().dtype(at::kFloat));
  const auto* const from = static_cast<const uint8_t*>(codes.const_data_ptr());
  float* const to = weight.mutable_data_ptr<float>();
  units.for_each_row([&](int64_t row, int64_t index, const Step& step) {
    kernels_in_use().decode(from + row * units.columns, units.columns, step, params.scale_row(index), params.zero_row(index), range,
                            to + row * units.columns);
  });
  return weight;
}

at::Tensor rounding_error(const at::Tensor& input, const at::Tensor& code_input, const at::Tensor& scale, const OptionalTensor& zero,
                          int64_t unit_rows, int64_t unit_columns) {
  const at::Tensor weight = with_contiguous_rows(input), codes = code_input.contiguous();
  const Layout units = layout(weight, unit_rows, unit_columns);
  const Params params = contiguous_params(scale, zero, units);
  const CodeRange range = range_of_codes(codes, zero);
  const Matrix before = matrix(weight);
  const auto* const bytes = static_cast<const uint8_t*>(codes.const_data_ptr());
  at::Tensor rows = at::zeros({units.rows, 2}, at::kDouble);  // added up in their order, whatever the threads
  double* const sums = rows.mutable_data_ptr<double>();
  units.for_each_row([&](int64_t row, int64_t index, const Step& step) {
    kernels_in_use().error(before, bytes + row * units.columns, step, params.scale_row(index), params.zero_row(index), range,
                           sums + 2 * row);
  });
  return rows.sum(0);
}

at::Tensor pack_codes(const at::Tensor& input, int64_t bits) {
  TORCH_CHECK(input.dim() == 2 && input.scalar_type() == at::kChar && bits >= 1 && bits <= 8, "pack_codes: int8 [rows, count], 1 to 8 bits");
  const at::Tensor codes = input.contiguous();
  const int64_t rows = codes.size(0), count = codes.size(1), words = ceil_div(count * bits, 32);
  at::Tensor packed = at::empty({rows, words}, at::kInt);
  const int8_t* const from = codes.const_data_ptr<int8_t>();
  auto* const to = reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, count)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) kernels_in_use().pack(from + row * count, count, static_cast<int>(bits), to + row * words);
  });
  return packed;
}

// ---- AWQ --------------------------------------------------------------------------------------------------------------

constexpr int64_t kGroupRows = 16, kLargestGroup = 256;  // of the kernel gram_ranges

std::tuple<at::Tensor, at::Tensor> gram_ranges(const at::Tensor& input, const at::Tensor& blocks, int64_t bits, bool e4m3, bool symmetric,
                                               at::ScalarType scale_dtype) {
  const int64_t group = blocks.size(-1), groups = blocks.size(0);
  if (group % 16 != 0 || group > kLargestGroup || input.scalar_type() != at::kFloat) {
    return reference<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, int64_t, bool, bool, at::ScalarType)>(
        "slim::gram_ranges", input, blocks, bits, e4m3, symmetric, scale_dtype);
  }
  const at::Tensor weight = with_contiguous_rows(input);
  const int64_t rows = weight.size(0), tiles = ceil_div(rows, kGroupRows);
  TORCH_CHECK(weight.size(1) == groups * group, "gram_ranges: ", groups, " blocks of ", group, " for ", weight.size(1), " channels");
  // δ B δᵀ takes half the products when every pair of channels is met once.
  const at::Tensor triangles = (blocks.triu() + blocks.triu(1)).contiguous();
  at::Tensor low = at::empty({rows, groups}, at::kFloat), high = at::empty_like(low);
  const CodeRange codes = code_range(bits, e4m3, symmetric);
  const Float type = float_type(scale_dtype);
  const float *const w = weight.const_data_ptr<float>(), *const triangle = triangles.const_data_ptr<float>();
  float *const lows = low.mutable_data_ptr<float>(), *const highs = high.mutable_data_ptr<float>();
  at::parallel_for(0, groups * tiles, 4, [&](int64_t begin, int64_t end) {
    float ends[2][kGroupRows];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / tiles, row = i % tiles * kGroupRows, count = std::min(kGroupRows, rows - row);  // a block serves many tiles
      kernels_in_use().gram_ranges(w + row * weight.stride(0) + g * group, weight.stride(0), count, group, triangle + g * group * group,
                                   codes, type, ends[0], ends[1]);
      for (int64_t r = 0; r < count; ++r) {
        lows[(row + r) * groups + g] = ends[0][r];
        highs[(row + r) * groups + g] = ends[1][r];
      }
    }
  });
  return {low, high};
}

constexpr int64_t kLossBytes = int64_t{64} << 20;  // of errors that wait for one product
constexpr int64_t kGramColumns = 512;

/// Σ δ gram δᵀ of each candidate, errors [candidates * rows, in]: blocks off the diagonal are met once and count twice.
at::Tensor quadratic_losses(const at::Tensor& errors, int64_t candidates, const at::Tensor& gram) {
  const int64_t features = gram.size(0);
  at::Tensor losses = at::zeros({candidates}, at::kDouble);
  for (int64_t begin = 0; begin < features; begin += kGramColumns) {
    const int64_t size = std::min(kGramColumns, features - begin);
    const at::Tensor part = errors.narrow(1, begin, size);
    const auto add = [&](const at::Tensor& left, const at::Tensor& block, double weight) {
      losses.add_(at::mm(left, block).mul_(part).view({candidates, -1}).sum(1, false, at::kDouble), weight);
    };
    if (begin > 0) add(errors.narrow(1, 0, begin), gram.narrow(0, 0, begin).narrow(1, begin, size), 2);
    add(part, gram.narrow(0, begin, size).narrow(1, begin, size), 1);
  }
  return losses;
}

at::Tensor scale_losses(const at::Tensor& input, const at::Tensor& scales_in, const OptionalTensor& gram, const OptionalTensor& inputs,
                        int64_t unit_columns, int64_t bits, bool e4m3, bool symmetric, at::ScalarType scale_dtype,
                        const OptionalTensor& importance, double max_shrink, double norm, int64_t steps) {
  TORCH_CHECK(gram.has_value() != inputs.has_value(), "scale_losses: expected either gram or inputs");
  const at::Tensor weight = input.to(at::kFloat).contiguous(), scales = scales_in.to(at::kFloat).contiguous();
  const int64_t rows = weight.size(0), columns = weight.size(1), candidates = scales.size(0);
  const at::Tensor channel_weights = importance ? (*importance / scales.square()).contiguous() : at::Tensor();
  const at::Tensor activations = inputs ? inputs->to(at::kFloat).t() : at::Tensor();
  const CodeRange codes = code_range(bits, e4m3, symmetric);
  const Float type = float_type(scale_dtype);
  at::Tensor losses = at::empty({candidates}, at::kDouble);
  const int64_t at_once = std::clamp<int64_t>(kLossBytes / std::max<int64_t>(1, rows * columns * 4), 1, std::max<int64_t>(1, candidates));
  for (int64_t first = 0; first < candidates; first += at_once) {
    const int64_t count = std::min(at_once, candidates - first);
    at::Tensor errors = at::empty({count * rows, columns}, at::kFloat);
    float* const to = errors.mutable_data_ptr<float>();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns));
    at::parallel_for(0, count * rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(columns));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t candidate = first + i / rows;
        const Shrink shrink{importance ? floats(channel_weights) + candidate * columns : nullptr, max_shrink, norm, steps};
        kernels_in_use().scaled_error(floats(weight) + i % rows * columns, floats(scales) + candidate * columns, columns,
                                      std::min(unit_columns, columns), shrink, codes, type, scratch.data(), to + i * columns);
      }
    });
    const at::Tensor found = gram ? quadratic_losses(errors, count, *gram)
                                  : at::mm(errors, activations).square_().view({count, -1}).sum(1, false, at::kDouble);
    losses.narrow(0, first, count).copy_(found);
  }
  return losses;
}

// ---- activations and the sweep ----------------------------------------------------------------------------------------

void channel_moments_(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max, const at::Tensor& input) {
  const at::Tensor x = with_contiguous_rows(input);
  const int64_t rows = x.size(0), columns = x.size(1);
  for (const at::Tensor* sum : {&sum_abs, &sum_square, &min, &max}) {
    TORCH_CHECK(sum->is_contiguous() && sum->scalar_type() == at::kFloat && sum->numel() == columns, "channel_moments_: sums are fp32 [features]");
  }
  const Matrix from = matrix(x);
  float *const abs = sum_abs.mutable_data_ptr<float>(), *const square = sum_square.mutable_data_ptr<float>();
  float *const low = min.mutable_data_ptr<float>(), *const high = max.mutable_data_ptr<float>();
  constexpr int64_t kColumns = 64;  // a cache line or two of each row
  at::parallel_for(0, ceil_div(columns, kColumns), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, rows * kColumns)),
                   [&](int64_t begin, int64_t end) {
                     kernels_in_use().moments(from, rows, begin * kColumns, std::min(end * kColumns, columns), abs, square, low, high);
                   });
}

#if defined(__x86_64__)
bool has_bfloat16_products() {
  static const bool found = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  }();
  return found && std::string_view(kernels_in_use().name) == "avx512";
}

constexpr int64_t kGramTokens = 512;  // a panel of so many stays in the second cache

/// Pairs of tokens [begin, begin + count) in panels of features; zeros fill up.
std::vector<uint32_t> gram_panels_of(const at::Tensor& x, int64_t begin, int64_t count) {
  constexpr int64_t kPanel = kernels::kGramPanel;
  const int64_t features = x.size(1), panels = ceil_div(features, kPanel), steps = ceil_div(count, 2);
  std::vector<uint32_t> packed(static_cast<size_t>(panels * steps * kPanel));
  const auto* const rows = static_cast<const uint16_t*>(x.const_data_ptr()) + begin * x.stride(0);
  at::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t columns = std::min(kPanel, features - p * kPanel);
      for (int64_t t = 0; t < steps; ++t) {
        const uint16_t* const even = rows + 2 * t * x.stride(0) + p * kPanel;
        const uint16_t* const odd = 2 * t + 1 < count ? even + x.stride(0) : nullptr;
        uint32_t* const to = packed.data() + (p * steps + t) * kPanel;
        for (int64_t c = 0; c < columns; ++c) to[c] = even[c] | (odd ? static_cast<uint32_t>(odd[c]) << 16 : 0);
      }
    }
  });
  return packed;
}

/// Only panels on and above the diagonal are multiplied; the mirrored result is exactly symmetric.
void gram_bfloat16(const at::Tensor& acc, const at::Tensor& x) {
  constexpr int64_t kPanel = kernels::kGramPanel;
  const int64_t features = x.size(1), panels = ceil_div(features, kPanel), stride = acc.stride(0);
  float* const sums = acc.mutable_data_ptr<float>();
  std::vector<std::pair<int64_t, int64_t>> tiles;
  for (int64_t a = 0; a < panels; ++a) {
    for (int64_t b = a; b < panels; ++b) tiles.emplace_back(a, b);
  }
  const auto width = [&](int64_t p) { return std::min(kPanel, features - p * kPanel); };
  const auto for_each_tile = [&](int64_t grain, auto&& f) {
    at::parallel_for(0, static_cast<int64_t>(tiles.size()), grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(tiles[static_cast<size_t>(i)].first, tiles[static_cast<size_t>(i)].second);
    });
  };
  for (int64_t begin = 0; begin < x.size(0); begin += kGramTokens) {
    const int64_t count = std::min(kGramTokens, x.size(0) - begin), steps = ceil_div(count, 2);
    const std::vector<uint32_t> packed = gram_panels_of(x, begin, count);
    for_each_tile(std::max<int64_t>(1, 64 / steps), [&](int64_t a, int64_t b) {
      kernels::gram_panels(packed.data() + a * steps * kPanel, packed.data() + b * steps * kPanel, steps, width(a), width(b),
                           sums + a * kPanel * stride + b * kPanel, stride);
    });
  }
  for_each_tile(16, [&](int64_t a, int64_t b) {
    if (a == b) return;
    for (int64_t i = a * kPanel; i < a * kPanel + width(a); ++i) {
      for (int64_t j = b * kPanel; j < b * kPanel + width(b); ++j) sums[j * stride + i] = sums[i * stride + j];
    }
  });
}
#endif

void gram_(at::Tensor acc, const at::Tensor& input) {
#if defined(__x86_64__)
  if (input.scalar_type() == at::kBFloat16 && acc.scalar_type() == at::kFloat && acc.stride(1) == 1 && has_bfloat16_products()) {
    TORCH_CHECK(acc.size(0) == input.size(1) && acc.size(1) == input.size(1), "gram_: acc is [features, features]");
    return gram_bfloat16(acc, with_contiguous_rows(input));
  }
#endif
  reference<void(at::Tensor, const at::Tensor&)>("slim::gram_", std::move(acc), input);
}

constexpr int64_t kSweepRows = 32;  // of one tile of the kernel

void column_sweep_(at::Tensor weight, at::Tensor errors, at::Tensor codes, const at::Tensor& factor, const OptionalTensor& scale,
                   const OptionalTensor& zero, const OptionalTensor& group, int64_t min_code, int64_t max_code, int64_t keep, int64_t of) {
  TORCH_CHECK(weight.dim() == 2 && errors.sizes() == weight.sizes() && weight.scalar_type() == at::kFloat &&
                  errors.scalar_type() == at::kFloat && weight.stride(1) == 1 && errors.stride(1) == 1,
              "column_sweep_: weight and errors are fp32 matrices of one shape with unit column stride");
  TORCH_CHECK(factor.dim() == 2 && factor.size(0) == weight.size(1) && factor.size(1) == weight.size(1), "column_sweep_: factor is [columns, columns]");
  TORCH_CHECK(of == 0 || (of <= 64 && keep >= 1 && keep < of), "column_sweep_: keep ", keep, " of ", of);
  if (weight.numel() == 0) return;
  const at::Tensor transposed = factor.t().contiguous();
  at::Tensor used_scale, used_zero, used_group;
  kernels::Sweep sweep{transposed.const_data_ptr<float>(), nullptr, nullptr, nullptr, weight.size(1), 0, static_cast<float>(min_code),
                       static_cast<float>(max_code), keep, of};
  kernels::SweepRows all{weight.mutable_data_ptr<float>(), errors.mutable_data_ptr<float>(), nullptr, weight.stride(0), errors.stride(0),
                         0, 0, weight.size(0)};
  if (scale && scale->defined()) {
    TORCH_CHECK(codes.sizes() == weight.sizes() && codes.scalar_type() == at::kChar && codes.stride(1) == 1, "column_sweep_: codes are int8 of weight's shape");
    TORCH_CHECK(group && group->numel() == weight.size(1) && group->scalar_type() == at::kInt, "column_sweep_: group is int32 [columns]");
    // Only the groups that the block uses: their scales then lie together.
    const int64_t first = group->min().item<int64_t>(), count = group->max().item<int64_t>() + 1 - first;
    TORCH_CHECK(first >= 0 && first + count <= scale->size(1), "column_sweep_: group names a column that scale does not have");
    used_group = (*group - first).to(at::kInt).contiguous();
    used_scale = scale->narrow(1, first, count).contiguous();
    if (zero && zero->defined()) used_zero = zero->narrow(1, first, count).contiguous();
    sweep.scale = floats(used_scale);
    sweep.zero = floats(used_zero);
    sweep.group = used_group.const_data_ptr<int32_t>();
    sweep.groups = count;
    all.codes = codes.mutable_data_ptr<int8_t>();
    all.codes_stride = codes.stride(0);
  }
  const Kernels& k = kernels_in_use();
  at::parallel_for(0, ceil_div(all.rows, kSweepRows), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(k.sweep_scratch(sweep));
    kernels::SweepRows rows = all;
    rows.row = begin * kSweepRows;
    rows.rows = std::min(end * kSweepRows, all.rows) - rows.row;
    rows.weight += rows.row * rows.weight_stride;
    rows.errors += rows.row * rows.errors_stride;
    if (rows.codes) rows.codes += rows.row * rows.codes_stride;
    k.sweep(sweep, rows, scratch.data());
  });
}

}  // namespace

const std::vector<std::string>& accelerated_ops() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = {"cast_e4m3",   "channel_moments_", "choose_params",  "column_sweep_", "decode",      "encode",
                                    "gram_ranges", "pack_codes",       "rounding_error", "round_units",   "scale_losses"};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16")) all.emplace_back("gram_");
#endif
    return all;
  }();
  return names;
}

TORCH_LIBRARY_IMPL(slim, CPU, m) {
  m.impl("choose_params", choose_params);
  m.impl("encode", encode);
  m.impl("cast_e4m3", cast_e4m3);
  m.impl("round_units", round_units);
  m.impl("decode", decode);
  m.impl("rounding_error", rounding_error);
  m.impl("pack_codes", pack_codes);
  m.impl("gram_ranges", gram_ranges);
  m.impl("scale_losses", scale_losses);
  m.impl("gram_", gram_);
  m.impl("channel_moments_", channel_moments_);
  m.impl("column_sweep_", column_sweep_);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    names.emplace_back("avx512");
  }
  if (avx2) names.emplace_back("avx2");
#endif
  names.emplace_back("portable");
  return names;
}

void use_instruction_set(const std::string& name) {
  const Kernels* found = &kernels::portable_kernels();
#if defined(__x86_64__)
  if (name == "avx512") found = &kernels::avx512_kernels();
  if (name == "avx2") found = &kernels::avx2_kernels();
#endif
  TORCH_CHECK(name == found->name, "no kernels for instruction set ", name);
  chosen.store(found, std::memory_order_release);
}

}  // namespace slim::cpu
