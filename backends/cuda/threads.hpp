#pragma once
#include <math.h>

#include "common/arithmetic.hpp"

/// What one CUDA thread does. Plain functions of pointers and the thread's number: they compile for the host too, where the tests
/// run them one by one.
namespace slim::kernels {

struct DeviceMatrix {
  const void* data;
  Float type;
  int64_t rows, columns, row_stride;
  const float* channel_scale = nullptr;  ///< [columns]: elements are products with it
};

/// The threads that share one unit. A lone thread is a team of one.
struct OneThread {
  int64_t lane = 0, lanes = 1;
  SLIM_KERNEL double sum(double x) const { return x; }  ///< over the team
  SLIM_KERNEL void wait() const {}                      ///< for what the others have written
};

/// Blocks of elements that share a scale.
struct DeviceUnits {
  int64_t unit_rows, unit_columns, units;  ///< units beside each other
  SLIM_KERNEL int64_t of(int64_t row, int64_t column) const {
    return row / unit_rows * units + column / unit_columns;
  }
};

SLIM_KERNEL float stored_element(const DeviceMatrix& m, int64_t row, int64_t column) {
  const int64_t at = row * m.row_stride + column;
  if (m.type == Float::kFloat) return static_cast<const float*>(m.data)[at];
  const uint32_t bits = static_cast<const uint16_t*>(m.data)[at];
  return m.type == Float::kBFloat16 ? from_bfloat16<float>(bits) : from_half<float>(bits);
}
SLIM_KERNEL float element(const DeviceMatrix& m, int64_t row, int64_t column) {
  const float x = stored_element(m, row, column);
  return m.channel_scale ? x * m.channel_scale[column] : x;
}

/// Extremes over the elements lane, lane + lanes, ... of one unit. NaN stays NaN. Empty lanes give the unit's first element.
struct Ends {
  float low, high;
};
SLIM_KERNEL void widen(Ends& ends, float x) {
  ends.low = x >= ends.low || ends.low != ends.low ? ends.low : x;
  ends.high = x <= ends.high || ends.high != ends.high ? ends.high : x;
}
/// Where a unit lies.
struct Area {
  int64_t row, column, rows, columns;
  SLIM_KERNEL int64_t size() const { return rows * columns; }
};
SLIM_KERNEL Area area_of(const DeviceMatrix& w, const DeviceUnits& units, int64_t unit) {
  const int64_t row = unit / units.units * units.unit_rows, column = unit % units.units * units.unit_columns;
  return {row, column, smaller(units.unit_rows, w.rows - row),
          smaller(units.unit_columns, w.columns - column)};
}
SLIM_KERNEL Ends unit_extremes(const DeviceMatrix& w, const DeviceUnits& units, int64_t unit, int64_t lane,
                               int64_t lanes) {
  const Area area = area_of(w, units, unit);
  const float first = element(w, area.row, area.column);
  Ends ends{first, first};
  for (int64_t i = lane; i < area.size(); i += lanes)
    widen(ends, element(w, area.row + i / area.columns, area.column + i % area.columns));
  return ends;
}

/// Ranges shrunk in equal steps to 1 - max_shrink of the extremes; see RangeSearch of slim/ops.hpp.
struct DeviceSearch {
  const float* importance = nullptr;  ///< [columns] or null
  double max_shrink = 0, norm = 2;
  int64_t steps = 0;
  SLIM_KERNEL float ratio(int64_t step) const {
    return static_cast<float>(1.0 - max_shrink * static_cast<double>(step) / static_cast<double>(steps));
  }
};

/// Σ importance |ŵ - w|^norm over the lane's elements of one unit.
SLIM_KERNEL double unit_error(const DeviceMatrix& w, const Area& area, const DeviceSearch& search,
                              const CodeRange& range, const ScaleZero<float>& params, int64_t lane,
                              int64_t lanes) {
  double total = 0;
  for (int64_t i = lane; i < area.size(); i += lanes) {
    const int64_t column = area.column + i % area.columns;
    const float x = element(w, area.row + i / area.columns, column);
    const float e = decoded(code_value(x, params.scale, params.zero, range, Float::kFloat), params.scale,
                            params.zero, range) -
                    x;
    const float power = search.norm == 2 ? e * e : powf(fabsf(e), static_cast<float>(search.norm));
    total += search.importance ? power * search.importance[column] : power;
  }
  return total;
}

/// The extremes of a unit, shrunk to the step of least error. Every thread of the team gets them.
template <class Team>
SLIM_KERNEL Ends shrunk(const DeviceMatrix& w, const Area& area, const Ends& ends, const DeviceSearch& search,
                        const CodeRange& range, Float scale_type, const Team& team) {
  double best_error = 0;
  float best = 1;
  for (int64_t step = 0; search.steps > 0 && step <= search.steps; ++step) {
    const float ratio = search.ratio(step);
    const ScaleZero<float> params = params_of(ends.low * ratio, ends.high * ratio, range, scale_type);
    const double error = team.sum(unit_error(w, area, search, range, params, team.lane, team.lanes));
    if (step > 0 && !(error < best_error)) continue;
    best_error = error;
    best = ratio;
  }
  return {ends.low * best, ends.high * best};
}

/// AWQ: δ = Q(w s) / s - w of the lane's elements of one unit, s the channel scales of w. delta [rows, columns].
SLIM_KERNEL void write_scaled_error(const DeviceMatrix& w, const Area& area, const CodeRange& range,
                                    const ScaleZero<float>& params, int64_t lane, int64_t lanes,
                                    float* delta) {
  for (int64_t i = lane; i < area.size(); i += lanes) {
    const int64_t row = area.row + i / area.columns, column = area.column + i % area.columns;
    const float code = code_value(element(w, row, column), params.scale, params.zero, range, Float::kFloat);
    const float value = decoded(code, params.scale, params.zero, range);
    delta[row * w.columns + column] = value / w.channel_scale[column] - stored_element(w, row, column);
  }
}

/// gram_ranges for one group of one row: w [group], block [group, group], coupling [group] or null, delta [group] of the team.
template <class Team>
SLIM_KERNEL Ends group_range(const float* w, const float* block, const float* coupling, int64_t group,
                             const CodeRange& range, Float scale_type, float* delta, const Team& team) {
  Ends all{0, 0};
  for (int64_t i = 0; i < group; ++i) widen(all, w[i]);
  auto error = [&](float low, float high) {
    const ScaleZero<float> params = params_of(all.low * low, all.high * high, range, scale_type);
    for (int64_t i = team.lane; i < group; i += team.lanes) {
      delta[i] = decoded(code_value(w[i], params.scale, params.zero, range, Float::kFloat), params.scale,
                         params.zero, range) -
                 w[i];
    }
    team.wait();
    double total = 0;
    for (int64_t j = team.lane; j < group; j += team.lanes) {
      float product = coupling ? 2 * coupling[j] : 0.0F;
      for (int64_t i = 0; i < group; ++i) product += delta[i] * block[i * group + j];
      total += product * delta[j];
    }
    team.wait();
    return static_cast<float>(team.sum(total));
  };
  float low = 1, high = 1;
  search_factors(range, coupling != nullptr, error, low, high);
  return {all.low * low, all.high * high};
}

/// One code; scale and zero as in slim/ops.hpp.
SLIM_KERNEL uint8_t encode_element(const DeviceMatrix& w, int64_t row, int64_t column,
                                   const DeviceUnits& units, const float* scale, const float* zero,
                                   const CodeRange& range, Float arithmetic) {
  const int64_t unit = units.of(row, column);
  const float x =
      scaled(element(w, row, column), scale[unit], range.symmetric ? 0.0F : zero[unit], range, arithmetic);
  return range.is_e4m3 ? static_cast<uint8_t>(e4m3_from_float(x))
                       : static_cast<uint8_t>(static_cast<int8_t>(round_even(x)));
}

SLIM_KERNEL float decode_element(uint8_t byte, int64_t unit, const float* scale, const float* zero,
                                 const CodeRange& range) {
  const float code =
      range.is_e4m3 ? e4m3_to_float<float>(byte) : static_cast<float>(static_cast<int8_t>(byte));
  return decoded(code, scale[unit], range.symmetric ? 0.0F : zero[unit], range);
}

/// Word `word` of the stream of one row of codes; see pack_codes.
SLIM_KERNEL uint32_t pack_word(const int8_t* codes, int64_t count, int bits, int64_t word) {
  const int64_t first_bit = word * 32, offset = int64_t{1} << (bits - 1);
  const uint32_t mask = (1u << bits) - 1;
  uint32_t packed = 0;
  for (int64_t i = first_bit / bits; i < count && i * bits < first_bit + 32; ++i) {
    const uint32_t code = static_cast<uint32_t>(codes[i] + offset) & mask;
    const int64_t shift = i * bits - first_bit;
    packed |= shift >= 0 ? code << shift : code >> -shift;
  }
  return packed;
}

/// Word `word` of column `column` of pack_awq. codes [8 * words, count].
SLIM_KERNEL uint32_t awq_word(const int8_t* codes, int64_t count, int64_t column, int64_t word) {
  constexpr int kOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};  // position -> channel of its eight
  uint32_t packed = 0;
  for (int k = 0; k < 8; ++k) {
    const int code = codes[(8 * word + kOrder[k]) * count + column];
    packed |= (static_cast<uint32_t>(code + 8) & 15u) << 4 * k;
  }
  return packed;
}

/// An entry of sparsity_mask.
SLIM_KERNEL bool mask_entry(const DeviceMatrix& w, const float* importance, int64_t row, int64_t column,
                            int64_t keep, int64_t of) {
  const auto score = [&](int64_t i) {
    return mask_score(element(w, row, i), importance ? importance[i] : 1.0F);
  };
  const float mine = score(column);
  const int64_t begin = column / of * of, end = smaller(begin + of, w.columns);
  int64_t rank = 0;
  for (int64_t i = begin; i < end; ++i) {
    const float its = score(i);
    rank += its > mine || (i < column && its == mine) ? 1 : 0;
  }
  return rank < keep;
}

/// channel_moments_ over the rows [begin, end) of one column.
struct Moments {
  float abs, square;
  Ends ends;
};
SLIM_KERNEL Moments column_moments(const DeviceMatrix& x, int64_t begin, int64_t end, int64_t column) {
  const float first = element(x, begin, column);
  Moments moments{0, 0, {first, first}};
  for (int64_t row = begin; row < end; ++row) {
    const float value = element(x, row, column);
    moments.abs += fabsf(value);
    moments.square += value * value;
    widen(moments.ends, value);
  }
  return moments;
}

/// rounding_error over the lane's columns of one row.
struct ErrorSums {
  double error = 0, weight = 0;
};
SLIM_KERNEL ErrorSums row_errors(const DeviceMatrix& w, const uint8_t* codes, const DeviceUnits& units,
                                 int64_t row, const float* scale, const float* zero, const CodeRange& range,
                                 int64_t lane, int64_t lanes) {
  ErrorSums sums;
  for (int64_t column = lane; column < w.columns; column += lanes) {
    const float x = element(w, row, column);
    const float e =
        decode_element(codes[row * w.columns + column], units.of(row, column), scale, zero, range) - x;
    sums.error += e * e;
    sums.weight += x * x;
  }
  return sums;
}

/// column_sweep_ of slim/ops.hpp for one row. factor [columns, columns], row-major with stride factor_stride.
struct DeviceSweep {
  const float* factor;
  int64_t factor_stride, columns;
  const float *scale, *zero;  ///< [rows, groups] or null
  int64_t scale_stride, zero_stride;
  const int32_t* group;
  float min_code, max_code;
  int64_t keep, of;
  float *weight, *errors;
  int8_t* codes;
  int64_t weight_stride, errors_stride, codes_stride;
};

/// True if column c is among the run's `keep` largest of w² / U²; the earlier of equals is.
SLIM_KERNEL bool is_kept(const DeviceSweep& sweep, const float* weight, int64_t begin, int64_t end,
                         int64_t c) {
  const auto salience = [&](int64_t i) {
    const float ratio = weight[i] / sweep.factor[i * sweep.factor_stride + i];
    return ratio * ratio;
  };
  const float mine = salience(c);
  int64_t rank = 0;
  for (int64_t i = begin; i < end; ++i) {
    const float its = salience(i);
    rank += its > mine || (i < c && its == mine) ? 1 : 0;
  }
  return rank < sweep.keep;
}

SLIM_KERNEL void settle_column(const DeviceSweep& sweep, int64_t row, int64_t i, bool kept, float* weight,
                               float* errors) {
  const float w = weight[i];
  float value = kept ? w : 0.0F;
  if (sweep.scale) {
    const float scale = sweep.scale[row * sweep.scale_stride + sweep.group[i]];
    const float zero = sweep.zero ? sweep.zero[row * sweep.zero_stride + sweep.group[i]] : 0.0F;
    const float code = kept ? round_even(clamp(w / scale + zero, sweep.min_code, sweep.max_code)) : zero;
    sweep.codes[row * sweep.codes_stride + i] = static_cast<int8_t>(code);
    value = (code - zero) * scale;
  }
  errors[i] = (w - value) / sweep.factor[i * sweep.factor_stride + i];
  weight[i] = value;
}

SLIM_KERNEL void sweep_row(const DeviceSweep& sweep, int64_t row) {
  float* const weight = sweep.weight + row * sweep.weight_stride;
  float* const errors = sweep.errors + row * sweep.errors_stride;
  const auto subtract = [&](int64_t i, int64_t from, int64_t to) {
    for (int64_t k = from; k < to; ++k) weight[i] -= errors[k] * sweep.factor[k * sweep.factor_stride + i];
  };
  const int64_t step = sweep.of > 0 ? sweep.of : 1;
  for (int64_t begin = 0; begin < sweep.columns; begin += step) {
    const int64_t end = smaller(begin + step, sweep.columns);
    uint64_t kept = ~uint64_t{0};
    for (int64_t i = begin; i < end; ++i) subtract(i, 0, begin);
    if (sweep.of > 0) {
      kept = 0;
      for (int64_t i = begin; i < end; ++i)
        kept |= static_cast<uint64_t>(is_kept(sweep, weight, begin, end, i)) << (i - begin);
    }
    for (int64_t i = begin; i < end; ++i) {
      subtract(i, begin, i);
      settle_column(sweep, row, i, (kept >> (i - begin)) & 1, weight, errors);
    }
  }
}

}  // namespace slim::kernels
