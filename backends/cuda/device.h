#pragma once
#include "common/arguments.hpp"
#include "threads.hpp"

namespace slim::cuda {

/// Throws for the error of a launch; null is none.
inline void check(const char* error) { TORCH_CHECK(error == nullptr, "CUDA: ", error); }

inline kernels::DeviceMatrix matrix(const at::Tensor& x) {
  return {x.const_data_ptr(), kernels::float_type(x.scalar_type()), x.size(0), x.size(1), x.stride(0)};
}

inline kernels::DeviceUnits units_of(const at::Tensor& x, int64_t rows, int64_t columns) {
  return {rows, columns, kernels::ceil_div(x.size(1), columns)};
}

}  // namespace slim::cuda
