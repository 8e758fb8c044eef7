#include "plan/device_plan.h"

#include <algorithm>

#include "statistics/statistic_set.h"
#include "util/text.h"

namespace slim {
namespace {

/// Patches that become one token, at most, in the adapters' vision towers.
constexpr int64_t kPatchesOfToken = 4;

/// Sizes of a block that its memory follows from.
struct BlockSizes {
  int64_t elements = 0, largest = 0;  ///< of its layers' weights, and of the largest
  int64_t params = 0;                 ///< bytes
  int64_t features = 0;               ///< of its widest port
  int64_t hidden = 0;                 ///< features at its entry
  int64_t tokens = 0;                 ///< of a sample
};

BlockSizes sizes_of(const BlockPlan& block, const Model& model, const RunConfig& config) {
  BlockSizes sizes;
  for (const Layer& layer : block.layers) {
    sizes.elements += layer.out * layer.in;
    sizes.largest = std::max(sizes.largest, layer.out * layer.in);
    sizes.features = std::max(sizes.features, layer.out);
  }
  for (const std::string& name : block.params)
    sizes.params += byte_size(model.weights->logical().at(name)).value_or(0);
  for (const Port& port : block.ports) sizes.features = std::max(sizes.features, port.features);
  if (!block.ports.empty()) sizes.hidden = block.ports.front().features;
  const bool text = block.stage == "language" || block.stage == "head";
  sizes.tokens = config.max_seq_length * (text ? 1 : kPatchesOfToken);
  return sizes;
}

/// What algorithms ask to be collected, with a statistic's own copies while it is used.
struct StatisticSizes {
  int64_t held = 0;     ///< bytes of all
  int64_t factors = 0;  ///< what a block keeps that is computed of them: one matrix for each Gram matrix
  int64_t largest = 0;  ///< the widest Gram matrix
  bool any = false;
};

StatisticSizes statistics_of(const BlockPlan& block, const RunConfig& config,
                             const std::vector<OutputPlan>& outputs, int64_t element_bytes,
                             MeasuredStatistics& measured) {
  const int64_t tokens = config.num_samples * config.max_seq_length;
  StatisticSet observed(block, tokens);
  for (const OutputPlan& output : outputs) {
    if (output.plan.changes(block)) observe(output, block, observed);
  }
  StatisticSizes sizes;
  sizes.any = !observed.empty();
  for (const Port& port : block.ports) {
    const int64_t square = port.features * port.features * 4;
    constexpr int64_t kVectors = 16;  // moments and the like, in double
    sizes.held += kVectors * 8 * port.features;
    const int64_t held = observed.bytes(port.id, tokens, element_bytes, measured);
    const int64_t gram = observed.find(port.id, Gram::kId) ? square : 0;
    constexpr int64_t kCopiesOfOther =
        6;  // what algorithms make of statistics that are no sums of products: fp32 copies
    sizes.held += gram + kCopiesOfOther * (held - gram);
    if (gram == 0) continue;
    sizes.factors += square;
    sizes.largest = std::max(sizes.largest, square);
  }
  if (outputs.size() > 1) sizes.held *= 2;  // each output folds its scales into a copy
  return sizes;
}

/// A forward pass over a batch in `bytes` an element: the tensors of attention or MLP that are there at a time.
int64_t forward_bytes(const BlockSizes& sizes, int64_t samples, int64_t bytes) {
  constexpr int64_t kTensors = 10;  // with the batch before and the one after, on their way
  const int64_t tokens = samples * sizes.tokens;
  return kTensors * tokens * (sizes.features + sizes.hidden) * bytes;
}

int64_t block_bytes(const BlockPlan& block, const RunConfig& config, const Model& model,
                    const std::vector<OutputPlan>& outputs, DeviceMode mode, bool forward,
                    MeasuredStatistics& measured) {
  constexpr int64_t kFloat = 4, kCopiesOfLayer = 12, kCopiesOfGram = 10;
  const BlockSizes sizes = sizes_of(block, model, config);
  const auto size = static_cast<int64_t>(c10::elementSize(model.weights->dtype()));
  const StatisticSizes statistics = statistics_of(block, config, outputs, size, measured);
  const int64_t stored = sizes.elements * size + sizes.params;
  const int64_t folded = statistics.any ? sizes.elements * kFloat : 0;  // scales are folded into fp32 copies
  const int64_t pass = forward ? forward_bytes(sizes, mode.batch_size, kFloat) : 0;
  const int64_t solve =
      kCopiesOfLayer * sizes.largest * kFloat + statistics.factors + kCopiesOfGram * statistics.largest;
  return (mode.read_ahead ? 2 : 1) * stored + folded + statistics.held + std::max(pass, solve);
}

}  // namespace

int64_t peak_device_bytes(const RunConfig& config, const Model& model, const std::vector<OutputPlan>& outputs,
                          DeviceMode mode) {
  const auto& blocks = model.plan.blocks;
  const auto changes = [&](const BlockPlan& block) {
    return std::any_of(outputs.begin(), outputs.end(),
                       [&](const OutputPlan& output) { return output.plan.changes(block); });
  };
  int32_t last_forward = -1;  // blocks before it run, also those that nothing changes
  for (const BlockPlan& block : blocks) {
    StatisticSet observed(block, 0);
    for (const OutputPlan& output : outputs) {
      if (output.plan.changes(block)) observe(output, block, observed);
    }
    if (config.statistics.empty() && !observed.empty()) last_forward = block.index;
  }
  int64_t most = 0;
  MeasuredStatistics measured;
  for (const BlockPlan& block : blocks) {
    const bool forward = block.index <= last_forward;
    if (forward || changes(block))
      most = std::max(most, block_bytes(block, config, model, outputs, mode, forward, measured));
  }
  return most;
}

int64_t least_device_bytes(const RunConfig& config, const Model& model,
                           const std::vector<OutputPlan>& outputs) {
  return peak_device_bytes(config, model, outputs, {.batch_size = 1, .read_ahead = false});
}

Result<DeviceMode> choose_device_mode(const RunConfig& config, const Model& model,
                                      const std::vector<OutputPlan>& outputs, int64_t free) {
  const int64_t budget = config.max_vram > 0 ? config.max_vram : free;
  DeviceMode mode{config.batch_size, true};
  const auto fits = [&] { return budget <= 0 || peak_device_bytes(config, model, outputs, mode) <= budget; };
  if (fits()) return mode;
  mode.read_ahead = false;
  while (!fits() && mode.batch_size > 1) mode.batch_size = (mode.batch_size + 1) / 2;
  if (fits() || config.max_vram == 0) return mode;
  return Status(Code::kOutOfMemory,
                "the run takes at least " + bytes_text(least_device_bytes(config, model, outputs)) +
                    " of the device's memory, one sample at a time; run.max_vram allows " +
                    bytes_text(config.max_vram) +
                    "; shorter samples (--max-seq-length) take less, and --backend cpu takes none");
}

}  // namespace slim
