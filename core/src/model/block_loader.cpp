#include "model/block_loader.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "plugin/guard.h"
#include "slim/phase.hpp"
#include "util/device_moves.h"

namespace slim {

void BlockLoader::begin(const BlockPlan& block) {
  next_ = std::async(std::launch::async, [this, &block] { return read(block); });
}

Result<BlockWeights> BlockLoader::take(const BlockPlan& block) {
  if (!next_.valid()) begin(block);
  SLIM_ASSIGN(const auto coming, next_.get());
  coming->copies.wait_on_host();
  return on_device(block, std::move(coming->weights));
}

BlockWeights BlockLoader::on_device(const BlockPlan& block, BlockWeights weights) {
  auto there = guarded(block.name, [&]() -> Result<BlockWeights> { return moved(weights, device_); });
  if (there.ok()) return *std::move(there);
  notes_.note("weights moved one by one: out of the device's memory", block.name, there.status().message());
  return weights;
}

Result<std::unique_ptr<BlockLoader::Coming>> BlockLoader::read(const BlockPlan& block) const {
  const PhaseTimer timer(Phase::kReading);
  auto coming = std::make_unique<Coming>(device_);
  SLIM_ASSIGN(coming->weights, source_.load(block));
  if (!device_.is_cpu() && send_ahead_) send(*coming);
  return coming;
}

/// If there is no room for them yet, they are moved when it is their turn.
void BlockLoader::send(Coming& coming) {
  const c10::NoGradGuard no_grad;
  const auto there = guarded("moving between host and device", [&]() -> Result<BlockWeights> {
    BlockWeights weights = coming.weights;
    for (auto* tensors : {&weights.weight, &weights.bias}) {
      for (at::Tensor& tensor : *tensors) tensor = coming.copies.to_device(tensor);
    }
    for (auto& [name, tensor] : weights.params) tensor = coming.copies.to_device(tensor);
    coming.copies.start();
    return weights;
  });
  if (there.ok()) coming.weights = *there;
}

}  // namespace slim
