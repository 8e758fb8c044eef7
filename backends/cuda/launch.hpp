#pragma once
#include "threads.hpp"

/// Launches on the default stream, which LibTorch's operators use too. All pointers are the device's. Each returns an error's text, or
/// null.
namespace slim::cuda {

const char* launch_params(const kernels::DeviceMatrix& w, const kernels::DeviceUnits& units, int64_t count, const kernels::CodeRange&,
                          kernels::Float scale_type, float* scale, float* zero);
const char* launch_encode(const kernels::DeviceMatrix& w, const kernels::DeviceUnits& units, const float* scale, const float* zero,
                          const kernels::CodeRange&, kernels::Float arithmetic, uint8_t* codes);
const char* launch_decode(const uint8_t* codes, int64_t rows, int64_t columns, const kernels::DeviceUnits& units, const float* scale,
                          const float* zero, const kernels::CodeRange&, float* w);
const char* launch_pack(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words, uint32_t* packed);
const char* wait_for_device();
const char* launch_sweep(const kernels::DeviceSweep&, int64_t rows);

}  // namespace slim::cuda
