#pragma once
#include "common/arguments.hpp"
#include "kernels.hpp"

namespace slim::cpu {

/// The kernels of the instruction set that is in use.
const kernels::Kernels& kernels_in_use();

/// Elements that are worth a thread's start.
constexpr int64_t kGrain = int64_t{1} << 15;

inline kernels::Matrix matrix(const at::Tensor& x) {
  return {x.const_data_ptr(), kernels::float_type(x.scalar_type()), x.size(1), x.stride(0)};
}

/// Matrices [..., columns, columns] with their columns in panels as kernels::GroupSearch has them, padded by zeros:
/// [..., ceil(columns / kPanelColumns), columns, kPanelColumns].
at::Tensor in_panels(const at::Tensor& matrices);

}  // namespace slim::cpu
