#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "slim/scheme.hpp"

namespace slim::quant {

/// How a weight [out, in] splits into the units that share one scale, whatever the granularity: rows are cut into the steps that a
/// unit spans, and each step is seen as [steps, units, elements] with one scale per [steps, units].
class Units {
 public:
  /// kInvalidArgument for granularities of activations and for groups that do not divide the row.
  static Result<Units> make(const QuantArgs& args, int64_t out, int64_t in);
  /// Blocks of unit_rows x unit_columns.
  static Units of(int64_t unit_rows, int64_t unit_columns, int64_t out, int64_t in);
  int64_t unit_rows() const { return whole_tensor_ ? out_ : row_step_; }
  int64_t unit_columns() const { return columns_; }

  /// Columns of the scale, whose shape is [1,1], [out,1], [out,groups] or [block rows, block columns].
  int64_t scale_columns() const { return units_; }
  /// Rows are processed in steps of this many.
  int64_t row_step() const { return row_step_; }
  bool whole_tensor() const { return whole_tensor_; }

  /// Rows [r, in] (whole steps, the last may be cut short) as [steps, units, elements], padded with zeros where a block is cut.
  at::Tensor split(const at::Tensor& rows) const;
  /// The opposite, back to [r, in].
  at::Tensor join(const at::Tensor& units, int64_t rows) const;
  /// A per-channel vector [in] as [1, units, elements].
  at::Tensor split_channels(const at::Tensor& vector) const;
  /// The entries of the rows [begin, begin + r) of a tensor [steps, units], as a view.
  at::Tensor steps_of(const at::Tensor& scale, int64_t begin, int64_t rows) const;
  /// The scales of these rows, ready to broadcast over split(): [steps, units, 1].
  at::Tensor scales_of(const at::Tensor& scale, int64_t begin, int64_t rows) const {
    return (whole_tensor_ ? scale : steps_of(scale, begin, rows)).unsqueeze(-1);
  }

  /// Calls f(begin, rows) for slices of rows that hold few enough elements to bound temporaries; slices are independent and,
  /// on the CPU, run in parallel.
  void for_each_slice(c10::Device device, const std::function<void(int64_t begin, int64_t rows)>& f) const;

 private:
  int64_t out_ = 0, in_ = 0, row_step_ = 1, columns_ = 0, steps_ = 0, units_ = 1;
  bool whole_tensor_ = false;
};

}  // namespace slim::quant
