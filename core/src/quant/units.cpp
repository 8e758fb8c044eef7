#include "units.h"
#include "slim/parallel.hpp"

#include <ATen/ATen.h>

namespace slim::quant {
namespace {
int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }
}  // namespace

Result<Units> Units::make(const QuantArgs& args, int64_t out, int64_t in) {
  Units units;
  units.out_ = out;
  units.in_ = units.columns_ = in;
  switch (args.granularity) {
    case Granularity::kTensor:
      units.whole_tensor_ = true;
      break;
    case Granularity::kChannel:
      break;
    case Granularity::kGroup:
      units.columns_ = args.group_size;
      if (args.group_size <= 0 || in % args.group_size != 0) {
        return Status(Code::kInvalidArgument, "groups of " + std::to_string(args.group_size) +
                                                  " do not divide the " + std::to_string(in) +
                                                  " input channels; choose a group size that does, or "
                                                  "per-channel scales");
      }
      break;
    case Granularity::kBlock:
      units.row_step_ = args.block_rows;
      units.columns_ = args.block_columns;
      if (args.block_rows <= 0 || args.block_columns <= 0) {
        return Status(Code::kInvalidArgument, "blocks need a positive number of rows and columns");
      }
      break;
    case Granularity::kToken:
      return Status(Code::kInvalidArgument, "per-token scales are for activations; a weight has no tokens");
  }
  units.steps_ = ceil_div(out, units.row_step_);
  units.units_ = ceil_div(in, units.columns_);
  return units;
}

Units Units::of(int64_t unit_rows, int64_t unit_columns, int64_t out, int64_t in) {
  Units units;
  units.out_ = out;
  units.in_ = in;
  units.columns_ = std::min(unit_columns, in);
  units.whole_tensor_ = unit_rows > 1 && unit_rows >= out && unit_columns >= in;
  units.row_step_ = units.whole_tensor_ ? 1 : unit_rows;
  units.steps_ = ceil_div(out, units.row_step_);
  units.units_ = ceil_div(in, units.columns_);
  return units;
}

at::Tensor Units::split(const at::Tensor& rows) const {
  const int64_t count = rows.size(0);
  if (row_step_ == 1) return rows.reshape({count, units_, columns_});
  const int64_t steps = ceil_div(count, row_step_);
  const at::Tensor padded =
      at::constant_pad_nd(rows, {0, units_ * columns_ - in_, 0, steps * row_step_ - count}, 0);
  return padded.view({steps, row_step_, units_, columns_})
      .transpose(1, 2)
      .reshape({steps, units_, row_step_ * columns_});
}

at::Tensor Units::join(const at::Tensor& units, int64_t rows) const {
  if (row_step_ == 1) return units.reshape({rows, in_});
  const at::Tensor padded = units.view({units.size(0), units_, row_step_, columns_})
                                .transpose(1, 2)
                                .reshape({units.size(0) * row_step_, units_ * columns_});
  return padded.narrow(0, 0, rows).narrow(1, 0, in_);
}

at::Tensor Units::split_channels(const at::Tensor& vector) const {
  if (row_step_ == 1) return vector.view({1, units_, columns_});
  const at::Tensor padded = at::constant_pad_nd(vector, {0, units_ * columns_ - in_}, 0);
  return padded.view({1, units_, 1, columns_})
      .expand({1, units_, row_step_, columns_})
      .reshape({1, units_, row_step_ * columns_});
}

at::Tensor Units::steps_of(const at::Tensor& scale, int64_t begin, int64_t rows) const {
  return scale.narrow(0, begin / row_step_, ceil_div(rows, row_step_));
}

void Units::for_each_slice(c10::Device device, const std::function<void(int64_t, int64_t)>& f) const {
  // A slice and its temporaries stay in a core's cache on the CPU; on a device they keep it busy.
  const int64_t elements = device.is_cpu() ? int64_t{1} << 16 : int64_t{1} << 24;
  const int64_t rows = std::max<int64_t>(1, elements / std::max<int64_t>(1, in_ * row_step_)) * row_step_;
  const auto slice = [&](int64_t index) { f(index * rows, std::min(rows, out_ - index * rows)); };
  const int64_t slices = ceil_div(out_, rows);
  if (device.is_cpu()) {
    parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) slice(i);
    });
  } else {
    for (int64_t i = 0; i < slices; ++i) slice(i);
  }
}

}  // namespace slim::quant
