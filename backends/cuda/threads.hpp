#pragma once
#include "common/arithmetic.hpp"

/// What one CUDA thread does. Plain functions of pointers and the thread's number: they compile for the host too, where the tests
/// run them one by one.
namespace slim::kernels {

struct DeviceMatrix {
  const void* data;
  Float type;
  int64_t rows, columns, row_stride;
};

/// Blocks of elements that share a scale.
struct DeviceUnits {
  int64_t unit_rows, unit_columns, units;  ///< units beside each other
  SLIM_KERNEL int64_t of(int64_t row, int64_t column) const { return row / unit_rows * units + column / unit_columns; }
};

SLIM_KERNEL float element(const DeviceMatrix& m, int64_t row, int64_t column) {
  const int64_t at = row * m.row_stride + column;
  if (m.type == Float::kFloat) return static_cast<const float*>(m.data)[at];
  const uint32_t bits = static_cast<const uint16_t*>(m.data)[at];
  return m.type == Float::kBFloat16 ? from_bfloat16<float>(bits) : from_half<float>(bits);
}

/// Extremes over the elements lane, lane + lanes, ... of one unit. NaN stays NaN. Empty lanes give the unit's first element.
struct Ends {
  float low, high;
};
SLIM_KERNEL void widen(Ends& ends, float x) {
  ends.low = x >= ends.low || ends.low != ends.low ? ends.low : x;
  ends.high = x <= ends.high || ends.high != ends.high ? ends.high : x;
}
SLIM_KERNEL Ends unit_extremes(const DeviceMatrix& w, const DeviceUnits& units, int64_t unit, int64_t lane, int64_t lanes) {
  const int64_t row = unit / units.units * units.unit_rows, column = unit % units.units * units.unit_columns;
  const int64_t rows = smaller(units.unit_rows, w.rows - row), columns = smaller(units.unit_columns, w.columns - column);
  const float first = element(w, row, column);
  Ends ends{first, first};
  for (int64_t i = lane; i < rows * columns; i += lanes) widen(ends, element(w, row + i / columns, column + i % columns));
  return ends;
}

/// One code; scale and zero as in slim/ops.hpp.
SLIM_KERNEL uint8_t encode_element(const DeviceMatrix& w, int64_t row, int64_t column, const DeviceUnits& units, const float* scale,
                                   const float* zero, const CodeRange& range, Float arithmetic) {
  const int64_t unit = units.of(row, column);
  const float x = scaled(element(w, row, column), scale[unit], range.symmetric ? 0.0F : zero[unit], range, arithmetic);
  return range.is_e4m3 ? static_cast<uint8_t>(e4m3_from_float(x)) : static_cast<uint8_t>(static_cast<int8_t>(round_even(x)));
}

SLIM_KERNEL float decode_element(uint8_t byte, int64_t unit, const float* scale, const float* zero, const CodeRange& range) {
  const float code = range.is_e4m3 ? e4m3_to_float<float>(byte) : static_cast<float>(static_cast<int8_t>(byte));
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
SLIM_KERNEL bool is_kept(const DeviceSweep& sweep, const float* weight, int64_t begin, int64_t end, int64_t c) {
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

SLIM_KERNEL void settle_column(const DeviceSweep& sweep, int64_t row, int64_t i, bool kept, float* weight, float* errors) {
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
      for (int64_t i = begin; i < end; ++i) kept |= static_cast<uint64_t>(is_kept(sweep, weight, begin, end, i)) << (i - begin);
    }
    for (int64_t i = begin; i < end; ++i) {
      subtract(i, begin, i);
      settle_column(sweep, row, i, (kept >> (i - begin)) & 1, weight, errors);
    }
  }
}

}  // namespace slim::kernels
