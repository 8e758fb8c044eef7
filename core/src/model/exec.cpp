#include "model/exec.h"

#include <ATen/ATen.h>

#include "slim/ops.hpp"
#include "slim/phase.hpp"
#include "slim/quant.hpp"
#include "util/device_moves.h"

namespace slim {

void BlockExec::set_block(const BlockPlan* block, const BlockWeights* weights) {
  weights_ = weights;
  if (block == block_) return;
  block_ = block;
  first_reader_.clear();
  if (!block) return;
  first_reader_.assign(block->ports.size(), -1);
  for (const Layer& layer : block->layers) {
    LayerId& first = first_reader_[static_cast<size_t>(layer.input)];
    if (first < 0) first = layer.id;
  }
}

at::Tensor BlockExec::linear(LayerId id, const at::Tensor& x) {
  const Layer& layer = block_->layers.at(id);
  if (statistics_ && first_reader_[static_cast<size_t>(layer.input)] == id)
    statistics_->update(layer.input, x);
  const auto replaced = overrides_ ? overrides_->find(id) : Overrides::const_iterator{};
  const bool override_weight = overrides_ && replaced != overrides_->end();
  const auto of_input = [&](const at::Tensor& stored) { return stored.to(device_, x.scalar_type()); };
  const at::Tensor weight = of_input(override_weight ? replaced->second : weights_->weight[id]);
  const at::Tensor bias = weights_->bias[id].defined() ? of_input(weights_->bias[id]) : at::Tensor();
  const auto& activation = weights_->activation[id];
  if (!activation) return ops::linear(x, weight, bias);
  const at::Tensor input = quant::fake_quantize_activation(
      x, activation->args, moved(activation->scale, device_), moved(activation->zero, device_));
  return ops::linear(input, weight, bias);
}

at::Tensor BlockExec::tap(PortId port, const at::Tensor& x) {
  if (statistics_) statistics_->update(port, x);
  return x;
}

void BlockExec::region_input(RegionId region, const at::Tensor& x) {
  if (statistics_ && statistics_->keeps(region)) region_inputs_[region].push_back(x.detach().cpu());
}

at::Tensor BlockExec::param(std::string_view name) {
  if (weights_) {
    if (const auto it = weights_->params.find(name); it != weights_->params.end())
      return computing(it->second);
  }
  if (const auto it = globals_.find(name); it != globals_.end()) return it->second;
  auto tensor = source_.tensor(name);
  if (!tensor.ok()) throw ExecError(tensor.status());
  return globals_[std::string(name)] = computing(*tensor);
}

at::Tensor BlockExec::rows(std::string_view name, const at::Tensor& ids) {
  auto rows = source_.rows(name, ids.to(at::kCPU));
  if (!rows.ok()) throw ExecError(rows.status());
  return computing(*rows);
}

std::pair<at::Tensor, at::Tensor> MemoryCache::extend(int32_t block, int64_t sequence, const at::Tensor& key,
                                                      const at::Tensor& value) {
  auto& [keys, values] = entries_[{block, sequence}];
  // where a pass went to the host for want of memory on the device, what earlier ones kept follows it
  const auto behind = [](const at::Tensor& kept, const at::Tensor& added) {
    return kept.defined() ? at::cat({kept.to(added.device()), added}) : added;
  };
  keys = behind(keys, key);
  values = behind(values, value);
  return {keys, values};
}

}  // namespace slim
