#pragma once
#include "threads.hpp"

/// Launches on the default stream, which LibTorch's operators use too. All pointers are the device's. Each returns an error's text, or
/// null.
namespace slim::cuda {

const char* launch_params(const kernels::DeviceMatrix& w, const kernels::DeviceUnits& units, int64_t count,
                          const kernels::DeviceSearch&, const kernels::CodeRange&, kernels::Float scale_type,
                          float* scale, float* zero);
/// The error of every row when all have one scale and zero point; errors [rows].
const char* launch_shared_errors(const kernels::DeviceMatrix& w, const kernels::DeviceSearch&,
                                 const kernels::CodeRange&, const float* scale, const float* zero,
                                 double* errors);
const char* launch_encode(const kernels::DeviceMatrix& w, const kernels::DeviceUnits& units,
                          const float* scale, const float* zero, const kernels::CodeRange&,
                          kernels::Float arithmetic, uint8_t* codes);
const char* launch_decode(const uint8_t* codes, int64_t rows, int64_t columns,
                          const kernels::DeviceUnits& units, const float* scale, const float* zero,
                          const kernels::CodeRange&, float* w);
const char* launch_pack(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words,
                        uint32_t* packed);
const char* launch_pack_columns(const int8_t* codes, int64_t rows, int64_t count, int bits, int64_t words,
                                uint32_t* packed);
const char* launch_pack_awq(const int8_t* codes, int64_t words, int64_t count, uint32_t* packed);
const char* launch_mask(const kernels::DeviceMatrix& w, const float* importance, int64_t keep, int64_t of,
                        bool* mask);
/// sums [rows, 2]: Σ (ŵ - w)² and Σ w² of every row.
const char* launch_rounding_error(const kernels::DeviceMatrix& w, const uint8_t* codes,
                                  const kernels::DeviceUnits& units, const float* scale, const float* zero,
                                  const kernels::CodeRange&, double* sums);
/// delta [candidates, rows, columns]; scales and importance [candidates, columns], the search's own importance is not read.
const char* launch_scaled_errors(const kernels::DeviceMatrix& w, const kernels::DeviceUnits& units,
                                 int64_t candidates, const float* scales, const float* importance,
                                 const kernels::DeviceSearch&, const kernels::CodeRange&,
                                 kernels::Float scale_type, float* delta);
/// group <= kLargestGroup. low and high [rows, groups].
constexpr int64_t kLargestGroup = 256;
const char* launch_group_ranges(const float* w, int64_t rows, int64_t row_stride, int64_t groups,
                                int64_t group, const float* blocks, const float* coupling,
                                const kernels::CodeRange&, kernels::Float scale_type, float* low,
                                float* high);
/// partial [4, chunks, columns]: Σ|x|, Σx², min and max of chunks of kMomentRows rows.
constexpr int64_t kMomentRows = 256;
const char* launch_moments(const kernels::DeviceMatrix& x, float* partial);
/// counts [2 * bins_per_side], added to; ends [kHistogramWarps, 2]: extremes, each of a part of the values. bins_per_side <= kMostBins.
constexpr int64_t kHistogramWarps = 2048, kMostBins = 4096;
const char* launch_histogram(const kernels::DeviceMatrix& x, float per_bin, int64_t bins_per_side,
                             int64_t* counts, float* ends);
const char* wait_for_device();
const char* launch_sweep(const kernels::DeviceSweep&, int64_t rows);

}  // namespace slim::cuda
