// The CUDA grids; what a thread does is in threads.hpp. Compiled without contraction: the results are the CPU's bits.
#include "launch.hpp"

#include <cuda_runtime.h>

namespace slim::cuda {
namespace {

using namespace slim::kernels;

constexpr int kThreads = 256, kWarp = 32;
constexpr int64_t kMostBlocks = 1 << 20;

/// Blocks for `count` threads' worth of work; threads take strides over what is left.
unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > kMostBlocks ? kMostBlocks : blocks);
}

__device__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

/// A warp per unit.
__global__ void params_kernel(DeviceMatrix w, DeviceUnits units, int64_t count, CodeRange range, Float scale_type, float* scale, float* zero) {
  const int64_t lane = thread_index() % kWarp;
  for (int64_t unit = thread_index() / kWarp; unit < count; unit += thread_count() / kWarp) {
    Ends ends = unit_extremes(w, units, unit, lane, kWarp);
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const float low = __shfl_xor_sync(0xffffffffu, ends.low, offset), high = __shfl_xor_sync(0xffffffffu, ends.high, offset);
      widen(ends, low);
      widen(ends, high);
    }
    if (lane != 0) continue;
    const ScaleZero<float> params = params_of(ends.low, ends.high, range, scale_type);
    scale[unit] = params.scale;
    if (!range.symmetric) zero[unit] = params.zero;
  }
}

__global__ void encode_kernel(DeviceMatrix w, DeviceUnits units, const float* scale, const float* zero, CodeRange range, Float arithmetic,
                              uint8_t* codes) {
  for (int64_t i = thread_index(); i < w.rows * w.columns; i += thread_count()) {
    codes[i] = encode_element(w, i / w.columns, i % w.columns, units, scale, zero, range, arithmetic);
  }
}

__global__ void decode_kernel(const uint8_t* codes, int64_t rows, int64_t columns, DeviceUnits units, const float* scale, const float* zero,
                              CodeRange range, float* w) {
  for (int64_t i = thread_index(); i < rows * columns; i += thread_count()) {
    w[i] = decode_element(codes[i], units.of(i / columns, i % columns), scale, zero, range);
  }
}

__global__ void pack_kernel(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words, uint32_t* packed) {
  for (int64_t i = thread_index(); i < rows * words; i += thread_count()) packed[i] = pack_word(codes + i / words * count, count, bits, i % words);
}

__global__ void sweep_kernel(DeviceSweep sweep, int64_t rows) {
  for (int64_t row = thread_index(); row < rows; row += thread_count()) sweep_row(sweep, row);
}

const char* error() {
  const cudaError_t code = cudaGetLastError();
  return code == cudaSuccess ? nullptr : cudaGetErrorString(code);
}

}  // namespace

const char* wait_for_device() {
  cudaDeviceSynchronize();
  return error();
}

const char* launch_params(const DeviceMatrix& w, const DeviceUnits& units, int64_t count, const CodeRange& range, Float scale_type,
                          float* scale, float* zero) {
  params_kernel<<<blocks_for(count * kWarp), kThreads>>>(w, units, count, range, scale_type, scale, zero);
  return error();
}

const char* launch_encode(const DeviceMatrix& w, const DeviceUnits& units, const float* scale, const float* zero, const CodeRange& range,
                          Float arithmetic, uint8_t* codes) {
  encode_kernel<<<blocks_for(w.rows * w.columns), kThreads>>>(w, units, scale, zero, range, arithmetic, codes);
  return error();
}

const char* launch_decode(const uint8_t* codes, int64_t rows, int64_t columns, const DeviceUnits& units, const float* scale, const float* zero,
                          const CodeRange& range, float* w) {
  decode_kernel<<<blocks_for(rows * columns), kThreads>>>(codes, rows, columns, units, scale, zero, range, w);
  return error();
}

const char* launch_pack(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words, uint32_t* packed) {
  pack_kernel<<<blocks_for(rows * words), kThreads>>>(codes, rows, count, bits, words, packed);
  return error();
}

const char* launch_sweep(const DeviceSweep& sweep, int64_t rows) {
  sweep_kernel<<<blocks_for(rows), kThreads>>>(sweep, rows);
  return error();
}

}  // namespace slim::cuda
