// SPDX-License-Identifier: Apache-2.0
// The host's processors with one kernel of their own: the statistics of activations in a single pass, where the reference
// kernel makes four.
#include <ATen/core/Tensor.h>
#include <torch/library.h>
#include <unistd.h>

#include <cmath>
#include <utility>

#include "slim/parallel.hpp"
#include "slim/plugin.hpp"

namespace {
using namespace slim;

/// slim::channel_moments_ (slim/ops.hpp): adds Σ|x| and Σx² over the rows of x and widens min and max; all [features] fp32.
void channel_moments(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max, const at::Tensor& x) {
  const at::Tensor rows = x.to(at::kFloat).contiguous();
  const int64_t tokens = rows.size(0), features = rows.size(1);
  const float* const data = rows.const_data_ptr<float>();
  // Statistics are made by slim, contiguous; their values are changed in place.
  float* const abs = sum_abs.mutable_data_ptr<float>();
  float* const square = sum_square.mutable_data_ptr<float>();
  float* const low = min.mutable_data_ptr<float>();
  float* const high = max.mutable_data_ptr<float>();
  constexpr int64_t kFeaturesPerTask = 64;  // whole cache lines: no two threads write to the same one
  slim::parallel_for(0, features, kFeaturesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t token = 0; token < tokens; ++token) {
      const float* const row = data + token * features;
      for (int64_t i = begin; i < end; ++i) {
        abs[i] += std::fabs(row[i]);
        square[i] += row[i] * row[i];
        if (row[i] < low[i] || std::isnan(row[i])) low[i] = row[i];  // NaN stays: no later number is smaller
        if (row[i] > high[i] || std::isnan(row[i])) high[i] = row[i];
      }
    }
  });
}

class MyBackend final : public Backend {
 public:
  c10::DeviceType device_type() const override { return c10::DeviceType::CPU; }

  /// A real device looks for its driver here, and says what is missing and how to get it.
  Status open(const Options&) override { return {}; }

  Result<std::vector<DeviceInfo>> devices() const override {
    DeviceInfo info;
    info.name = "host";
    const int64_t page = sysconf(_SC_PAGESIZE);
    info.total_bytes = page * sysconf(_SC_PHYS_PAGES);
    info.free_bytes = page * sysconf(_SC_AVPHYS_PAGES);
    return std::vector<DeviceInfo>{info};
  }

  bool accelerates(std::string_view op) const override { return op == "channel_moments_"; }
  void synchronize(c10::Device) override {}  // the CPU runs in order
};
}  // namespace

// LibTorch's dispatcher is the table of kernels: loading this library puts the kernel before the reference one.
TORCH_LIBRARY_IMPL(slim, CPU, library) { library.impl("channel_moments_", channel_moments); }

SLIM_BACKEND_PLUGIN("my_backend", MyBackend, "The host's processors, statistics in one pass", "{}")
