#pragma once
#include <map>
#include <vector>

#include "model/weights.h"
#include "slim/adapter.hpp"
#include "slim/algorithm.hpp"
#include "statistics/statistic_set.h"

namespace slim {

/// Exec over the weights of one block at a time. What is set on it decides what a forward pass does besides computing:
/// collect statistics, keep region inputs, use other weights. Not thread-safe.
class SLIM_API BlockExec final : public Exec {
 public:
  /// `source` must outlive the exec.
  BlockExec(const WeightSource& source, at::ScalarType dtype, at::Device device = at::kCPU)
      : source_(source), dtype_(dtype), device_(device) {}

  /// Both must live while they are set. Weights of another dtype are converted at each use.
  void set_block(const BlockPlan* block, const BlockWeights* weights);
  void set_statistics(StatisticSet* statistics) { statistics_ = statistics; }
  void set_overrides(const Overrides* overrides) { overrides_ = overrides; }
  void set_cache(KeyValueCache* cache) { cache_ = cache; }
  void set_all_experts(bool all) { all_experts_ = all; }
  /// Inputs of the regions that the statistics keep, one tensor per forward pass, on the host.
  std::map<RegionId, std::vector<at::Tensor>>& region_inputs() { return region_inputs_; }
  /// Forgets tensors outside blocks that were read.
  void release_globals() { globals_.clear(); }

  at::Tensor linear(LayerId, const at::Tensor& x) override;
  at::Tensor tap(PortId, const at::Tensor& x) override;
  void region_input(RegionId, const at::Tensor& x) override;
  at::Tensor param(std::string_view name) override;
  at::Tensor rows(std::string_view name, const at::Tensor& ids) override;
  bool all_experts() const override { return all_experts_; }
  KeyValueCache* cache() override { return cache_; }
  at::ScalarType dtype() const override { return dtype_; }
  at::Device device() const override { return device_; }

 private:
  at::Tensor computing(const at::Tensor& stored) const { return stored.to(device_, dtype_); }

  const WeightSource& source_;
  at::ScalarType dtype_;
  at::Device device_;
  const BlockPlan* block_ = nullptr;
  std::vector<LayerId> first_reader_;  ///< by port: the layer whose input stands for all that read it
  const BlockWeights* weights_ = nullptr;
  StatisticSet* statistics_ = nullptr;
  const Overrides* overrides_ = nullptr;
  KeyValueCache* cache_ = nullptr;
  bool all_experts_ = false;
  std::map<RegionId, std::vector<at::Tensor>> region_inputs_;
  TensorMap globals_;
};

/// Keys and values in memory, for every sequence of a batch.
class SLIM_API MemoryCache final : public KeyValueCache {
 public:
  std::pair<at::Tensor, at::Tensor> extend(int32_t block, int64_t sequence, const at::Tensor& key,
                                           const at::Tensor& value) override;

 private:
  std::map<std::pair<int32_t, int64_t>, std::pair<at::Tensor, at::Tensor>> entries_;
};

}  // namespace slim
