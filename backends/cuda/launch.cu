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

constexpr unsigned kAllLanes = 0xffffffffu;

/// The threads of a warp; every one gets a sum.
struct Warp {
  int64_t lane = thread_index() % kWarp, lanes = kWarp;
  __device__ double sum(double x) const {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    return x;
  }
  __device__ void wait() const { __syncwarp(); }
};
__device__ int64_t warp_index() { return thread_index() / kWarp; }
__device__ int64_t warp_count() { return thread_count() / kWarp; }

__device__ Ends warp_ends(Ends ends) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float low = __shfl_xor_sync(kAllLanes, ends.low, offset),
                high = __shfl_xor_sync(kAllLanes, ends.high, offset);
    widen(ends, low);
    widen(ends, high);
  }
  return ends;
}

/// Scale and zero point of a unit, found by a warp.
__device__ ScaleZero<float> unit_params(const DeviceMatrix& w, const DeviceUnits& units, int64_t unit,
                                        const DeviceSearch& search, const CodeRange& range,
                                        Float scale_type) {
  const Warp warp;
  Ends ends = warp_ends(unit_extremes(w, units, unit, warp.lane, kWarp));
  if (search.steps > 0) ends = shrunk(w, area_of(w, units, unit), ends, search, range, scale_type, warp);
  return params_of(ends.low, ends.high, range, scale_type);
}

/// A warp per unit.
__global__ void params_kernel(DeviceMatrix w, DeviceUnits units, int64_t count, DeviceSearch search,
                              CodeRange range, Float scale_type, float* scale, float* zero) {
  for (int64_t unit = warp_index(); unit < count; unit += warp_count()) {
    const ScaleZero<float> params = unit_params(w, units, unit, search, range, scale_type);
    if (Warp().lane != 0) continue;
    scale[unit] = params.scale;
    if (!range.symmetric) zero[unit] = params.zero;
  }
}

/// A warp per row.
__global__ void shared_errors_kernel(DeviceMatrix w, DeviceSearch search, CodeRange range, const float* scale,
                                     const float* zero, double* errors) {
  const Warp warp;
  const ScaleZero<float> params{*scale, range.symmetric ? 0.0F : *zero};
  for (int64_t row = warp_index(); row < w.rows; row += warp_count()) {
    const double error =
        warp.sum(unit_error(w, {row, 0, 1, w.columns}, search, range, params, warp.lane, kWarp));
    if (warp.lane == 0) errors[row] = error;
  }
}

__global__ void encode_kernel(DeviceMatrix w, DeviceUnits units, const float* scale, const float* zero,
                              CodeRange range, Float arithmetic, uint8_t* codes) {
  for (int64_t i = thread_index(); i < w.rows * w.columns; i += thread_count()) {
    codes[i] = encode_element(w, i / w.columns, i % w.columns, units, scale, zero, range, arithmetic);
  }
}

__global__ void decode_kernel(const uint8_t* codes, int64_t rows, int64_t columns, DeviceUnits units,
                              const float* scale, const float* zero, CodeRange range, float* w) {
  for (int64_t i = thread_index(); i < rows * columns; i += thread_count()) {
    w[i] = decode_element(codes[i], units.of(i / columns, i % columns), scale, zero, range);
  }
}

__global__ void pack_kernel(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words,
                            uint32_t* packed) {
  for (int64_t i = thread_index(); i < rows * words; i += thread_count())
    packed[i] = pack_word(codes + i / words * count, count, bits, i % words);
}

__global__ void pack_columns_kernel(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words,
                                    uint32_t* packed) {
  for (int64_t i = thread_index(); i < rows * words; i += thread_count())
    packed[i] = pack_word(codes + i % rows * count, count, bits, i / rows);
}

__global__ void pack_awq_kernel(const int8_t* codes, int64_t words, int64_t count, uint32_t* packed) {
  for (int64_t i = thread_index(); i < words * count; i += thread_count())
    packed[i] = awq_word(codes, count, i / words, i % words);
}

__global__ void mask_kernel(DeviceMatrix w, const float* importance, int64_t keep, int64_t of, bool* mask) {
  for (int64_t i = thread_index(); i < w.rows * w.columns; i += thread_count()) {
    mask[i] = mask_entry(w, importance, i / w.columns, i % w.columns, keep, of);
  }
}

/// A warp per row.
__global__ void rounding_error_kernel(DeviceMatrix w, const uint8_t* codes, DeviceUnits units,
                                      const float* scale, const float* zero, CodeRange range, double* sums) {
  const Warp warp;
  for (int64_t row = warp_index(); row < w.rows; row += warp_count()) {
    const ErrorSums mine = row_errors(w, codes, units, row, scale, zero, range, warp.lane, kWarp);
    const double error = warp.sum(mine.error), weight = warp.sum(mine.weight);
    if (warp.lane != 0) continue;
    sums[2 * row] = error;
    sums[2 * row + 1] = weight;
  }
}

/// A warp per unit of each candidate.
__global__ void scaled_errors_kernel(DeviceMatrix w, DeviceUnits units, int64_t candidates,
                                     const float* scales, const float* importance, DeviceSearch search,
                                     CodeRange range, Float scale_type, float* delta) {
  const int64_t count = w.rows * units.units;  // a unit is part of one row
  for (int64_t i = warp_index(); i < candidates * count; i += warp_count()) {
    const int64_t candidate = i / count, unit = i % count;
    w.channel_scale = scales + candidate * w.columns;
    search.importance = importance ? importance + candidate * w.columns : nullptr;
    const ScaleZero<float> params = unit_params(w, units, unit, search, range, scale_type);
    write_scaled_error(w, area_of(w, units, unit), range, params, Warp().lane, kWarp,
                       delta + candidate * w.rows * w.columns);
  }
}

/// A warp per group of a row; the warps of a block share a group, whose moments then stay in the first cache.
__global__ void group_ranges_kernel(const float* w, int64_t rows, int64_t row_stride, int64_t groups,
                                    int64_t group, const float* blocks, const float* coupling, CodeRange range, Float scale_type,
                                    float* low, float* high) {
  __shared__ float delta[kThreads / kWarp][kLargestGroup];
  const Warp warp;
  for (int64_t i = warp_index(); i < rows * groups; i += warp_count()) {
    const int64_t g = i / rows, row = i % rows;
    const Ends ends = group_range(w + row * row_stride + g * group, blocks + g * group * group,
                                  coupling ? coupling + (row * groups + g) * group : nullptr, group, range,
                                  scale_type, delta[threadIdx.x / kWarp], warp);
    if (warp.lane != 0) continue;
    low[row * groups + g] = ends.low;
    high[row * groups + g] = ends.high;
  }
}

/// A thread per column and chunk of rows.
__global__ void moments_kernel(DeviceMatrix x, int64_t chunks, float* partial) {
  for (int64_t i = thread_index(); i < chunks * x.columns; i += thread_count()) {
    const int64_t begin = i / x.columns * kMomentRows;
    const Moments moments = column_moments(x, begin, smaller(begin + kMomentRows, x.rows), i % x.columns);
    const int64_t plane = chunks * x.columns;
    partial[i] = moments.abs;
    partial[plane + i] = moments.square;
    partial[2 * plane + i] = moments.ends.low;
    partial[3 * plane + i] = moments.ends.high;
  }
}

/// Counts of a block in its shared memory first.
__global__ void histogram_kernel(DeviceMatrix x, float per_bin, int bins_per_side, unsigned long long* counts,
                                 float* ends) {
  extern __shared__ unsigned found[];
  for (int bin = static_cast<int>(threadIdx.x); bin < 2 * bins_per_side; bin += kThreads) found[bin] = 0;
  __syncthreads();
  const float first = element(x, 0, 0);
  Ends mine{first, first};
  for (int64_t i = thread_index(); i < x.rows * x.columns; i += thread_count()) {
    const float value = element(x, i / x.columns, i % x.columns);
    widen(mine, value);
    atomicAdd(&found[bin_of(value, per_bin, static_cast<float>(bins_per_side)) + bins_per_side], 1u);
  }
  mine = warp_ends(mine);
  if (Warp().lane == 0) {
    ends[2 * warp_index()] = mine.low;
    ends[2 * warp_index() + 1] = mine.high;
  }
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < 2 * bins_per_side; bin += kThreads) {
    if (found[bin] > 0) atomicAdd(&counts[bin], found[bin]);
  }
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

const char* launch_params(const DeviceMatrix& w, const DeviceUnits& units, int64_t count,
                          const DeviceSearch& search, const CodeRange& range, Float scale_type, float* scale,
                          float* zero) {
  params_kernel<<<blocks_for(count * kWarp), kThreads>>>(w, units, count, search, range, scale_type, scale,
                                                         zero);
  return error();
}

const char* launch_shared_errors(const DeviceMatrix& w, const DeviceSearch& search, const CodeRange& range,
                                 const float* scale, const float* zero, double* errors) {
  shared_errors_kernel<<<blocks_for(w.rows * kWarp), kThreads>>>(w, search, range, scale, zero, errors);
  return error();
}

const char* launch_encode(const DeviceMatrix& w, const DeviceUnits& units, const float* scale,
                          const float* zero, const CodeRange& range, Float arithmetic, uint8_t* codes) {
  encode_kernel<<<blocks_for(w.rows * w.columns), kThreads>>>(w, units, scale, zero, range, arithmetic,
                                                              codes);
  return error();
}

const char* launch_decode(const uint8_t* codes, int64_t rows, int64_t columns, const DeviceUnits& units,
                          const float* scale, const float* zero, const CodeRange& range, float* w) {
  decode_kernel<<<blocks_for(rows * columns), kThreads>>>(codes, rows, columns, units, scale, zero, range, w);
  return error();
}

const char* launch_pack(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words,
                        uint32_t* packed) {
  pack_kernel<<<blocks_for(rows * words), kThreads>>>(codes, rows, count, bits, words, packed);
  return error();
}

const char* launch_pack_columns(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words,
                                uint32_t* packed) {
  pack_columns_kernel<<<blocks_for(rows * words), kThreads>>>(codes, rows, count, bits, words, packed);
  return error();
}

const char* launch_pack_awq(const int8_t* codes, int64_t words, int64_t count, uint32_t* packed) {
  pack_awq_kernel<<<blocks_for(words * count), kThreads>>>(codes, words, count, packed);
  return error();
}

const char* launch_mask(const DeviceMatrix& w, const float* importance, int64_t keep, int64_t of,
                        bool* mask) {
  mask_kernel<<<blocks_for(w.rows * w.columns), kThreads>>>(w, importance, keep, of, mask);
  return error();
}

const char* launch_rounding_error(const DeviceMatrix& w, const uint8_t* codes, const DeviceUnits& units,
                                  const float* scale, const float* zero, const CodeRange& range,
                                  double* sums) {
  rounding_error_kernel<<<blocks_for(w.rows * kWarp), kThreads>>>(w, codes, units, scale, zero, range, sums);
  return error();
}

const char* launch_scaled_errors(const DeviceMatrix& w, const DeviceUnits& units, int64_t candidates,
                                 const float* scales, const float* importance, const DeviceSearch& search,
                                 const CodeRange& range, Float scale_type, float* delta) {
  scaled_errors_kernel<<<blocks_for(candidates * w.rows * units.units * kWarp), kThreads>>>(
      w, units, candidates, scales, importance, search, range, scale_type, delta);
  return error();
}

const char* launch_group_ranges(const float* w, int64_t rows, int64_t row_stride, int64_t groups,
                                int64_t group, const float* blocks, const float* coupling, const CodeRange& range, Float scale_type,
                                float* low, float* high) {
  group_ranges_kernel<<<blocks_for(rows * groups * kWarp), kThreads>>>(w, rows, row_stride, groups, group,
                                                                       blocks, coupling, range, scale_type, low, high);
  return error();
}

const char* launch_moments(const DeviceMatrix& x, float* partial) {
  const int64_t chunks = (x.rows + kMomentRows - 1) / kMomentRows;
  moments_kernel<<<blocks_for(chunks * x.columns), kThreads>>>(x, chunks, partial);
  return error();
}

const char* launch_histogram(const DeviceMatrix& x, float per_bin, int64_t bins_per_side, int64_t* counts,
                             float* ends) {
  const auto bins = static_cast<int>(bins_per_side);
  histogram_kernel<<<kHistogramWarps * kWarp / kThreads, kThreads, 2 * bins * sizeof(unsigned)>>>(
      x, per_bin, bins, reinterpret_cast<unsigned long long*>(counts), ends);
  return error();
}

const char* launch_sweep(const DeviceSweep& sweep, int64_t rows) {
  sweep_kernel<<<blocks_for(rows), kThreads>>>(sweep, rows);
  return error();
}

}  // namespace slim::cuda
