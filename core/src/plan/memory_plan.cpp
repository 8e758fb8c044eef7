#include <algorithm>
#include <numeric>

#include "checkpoint/async_writer.h"
#include "plan/run_plan.h"
#include "slim/feedback.hpp"
#include "slim/ops.hpp"
#include "statistics/statistic_set.h"
#include "util/text.h"

namespace slim {
namespace {

/// LibTorch and the plugins; what a forward pass adds: buffers of matrix products.
constexpr int64_t kProgramBytes = int64_t{125} << 20, kPassBuffers = int64_t{65} << 20;
constexpr int64_t kFloatBytes = 4;

int64_t elements(const Layer& layer) { return layer.out * layer.in; }

/// What one block takes in each of its phases. The phases follow BlockPipeline and OutputRun: whoever changes what is held there
/// changes it here; tests/oracle/test_memory.py compares both.
class BlockMemory {
 public:
  BlockMemory(const RunConfig& config, const Model& model, const std::vector<OutputPlan>& outputs,
              MemoryMode mode, const BlockPlan& block, MeasuredStatistics& measured)
      : mode_(mode),
        block_(block),
        size_(static_cast<int64_t>(c10::elementSize(model.weights->dtype()))),
        tokens_(config.num_samples * config.max_seq_length),
        batch_(std::min(tokens_, config.batch_size * config.max_seq_length)),
        observed_(block, tokens_) {
    for (const OutputPlan& output : outputs) observe(output, block, observed_);
    forward_ = !observed_.empty() && config.statistics.empty();
    for (const Layer& layer : block.layers) {
      weights_ += elements(layer) * size_;
      largest_ = std::max(largest_, elements(layer));
      widest_ = std::max({widest_, layer.in, layer.out});
    }
    for (const Port& port : block.ports)
      statistics_.push_back(observed_.bytes(port.id, tokens_, size_, measured));
    work_.assign(block.layers.size(), 0);
    for (const OutputPlan& output : outputs) count_work(output);
    folds_ = folds_ && !observed_.empty();
    copies_ = static_cast<int64_t>(outputs.size());
    const auto& blocks = model.plan.blocks;
    const bool mixture = std::any_of(blocks.begin(), blocks.end(),
                                     [](const BlockPlan& other) { return other.moe.has_value(); });
    proved_ =
        mixture ? batch_ : std::min(batch_, config.max_seq_length);  // the first sample is a batch of its own
    const auto dtype = model.compute_dtype(config.dtype);
    if (!dtype.ok()) return;
    if (ops::product_dtype(*dtype, at::kCPU) != *dtype) products_ = ops::kLinearTileBytes;
    keeps_copies_ = ops::products_keep_copies(*dtype);
  }

  /// `ahead`: of weights that are read meanwhile; `left`: codes of earlier blocks, which may not all be written.
  int64_t peak(int64_t ahead, int64_t left) const {
    const int64_t shared =
        (mode_.read_ahead ? ahead : 0) + activations() + (copies_ > 1 ? weights_ + statistics_of_all() : 0);
    const int64_t before = (forward_ ? 0 : left) + (copies_ - 1) * codes();
    return shared + std::max({gathering(), transforming(), solving(before)});
  }
  int64_t weights() const { return weights_; }
  int64_t codes() const { return weights_ / size_; }
  bool runs_forward() const { return forward_; }

 private:
  /// What the algorithms of an output hold for each layer that they make, and whether they fold.
  void count_work(const OutputPlan& output) {
    for (const Layer& layer : block_.layers) {
      const LayerDecision& decision = output.plan.layers[block_.index][layer.id];
      if (!decision.scheme) continue;
      const RecipePart& part = output.recipe.parts[decision.part];
      int64_t& work = work_[layer.id];
      work = std::max(work, elements(layer));  // its packed codes
      for (const auto& algorithm : part.algorithms) {
        const bool transforms = algorithm->transforms();
        folds_ = folds_ || transforms;
        if (transforms || algorithm.get() == part.solver())
          work = std::max(work, algorithm->work_bytes(layer, *decision.scheme));
      }
      largest_work_ = std::max(largest_work_, work);
    }
  }

  int64_t statistics(const Port& port) const { return statistics_[port.id]; }
  int64_t statistics_of_all() const {
    return std::accumulate(statistics_.begin(), statistics_.end(), int64_t{0});
  }
  int64_t hidden() const { return block_.ports.empty() ? 0 : block_.ports.front().features; }

  /// The hidden states of all samples, or of a batch on its way in and out, and inputs that are kept for a replay.
  int64_t activations() const {
    if (!forward_) return 0;
    const int64_t each = hidden() * size_;
    const int64_t states = mode_.spill ? 2 * batch_ : (copies_ > 1 ? 2 : 1) * tokens_;
    const int64_t replayed = observed_.keeps_inputs() ? ((mode_.spill ? batch_ : tokens_) + tokens_) : 0;
    return (states + replayed) * each;
  }
  /// What a forward pass of one batch holds at most: an MLP's wide activations, or attention's many narrow ones. Products and norms of
  /// 16 bits are partly fp32 inside.
  int64_t pass(int64_t size) const { return pass(size, batch_); }
  int64_t pass(int64_t size, int64_t tokens) const {
    const bool single = size == kFloatBytes;
    const bool copied = keeps_copies_ || products_ > 0;
    const int64_t wide = single ? 2 : copied ? 4 : 3, narrow = single ? 7 : keeps_copies_ ? 17 : 11;
    return tokens * std::max(wide * widest_ + 5 * hidden(), narrow * hidden()) * size +
           (single ? 0 : products_);
  }

  int64_t gathering() const { return weights_ + statistics_of_all() + (forward_ ? pass(size_) : 0); }

  /// Folded weights are fp32. The search works on one layer; the proof on the smallest batch in fp32, of which it keeps the states and what the
  /// block made of them.
  int64_t transforming() const {
    if (!folds_) return 0;
    const int64_t search = largest_work_,
                  proof = forward_ ? pass(kFloatBytes, proved_) + 2 * proved_ * hidden() * kFloatBytes : 0;
    return folded(weights_) + statistics_of_all() + std::max(search, proof);
  }
  int64_t folded(int64_t bytes) const { return folds_ ? bytes / size_ * kFloatBytes : bytes; }

  /// Input after input, with the layers that read it; what is solved is again in the dtype of the checkpoint.
  int64_t solving(int64_t codes_before) const {
    int64_t weights_left = weights_, statistics_left = statistics_of_all(), most = 0;
    for (const Layer& first : block_.layers) {
      if (!reads_first(first)) continue;
      const Port& port = block_.ports[static_cast<size_t>(first.input)];
      int64_t codes = 0, work = 0, own = 0;
      for (const Layer& layer : block_.layers) {
        if (layer.input != first.input) continue;
        own += elements(layer) * size_;
        codes += elements(layer);
        work = std::max(work, work_[layer.id]);
      }
      const int64_t solved = forward_ ? weights_ - weights_left : 0;
      most = std::max(most, folded(weights_left) + solved + statistics_left + waiting(codes_before) + codes +
                                solving_layer(port, work));
      codes_before += codes;
      weights_left -= own;
      statistics_left -= statistics(port);
    }
    return most;
  }
  /// Of so many codes, those that the writer holds at most.
  int64_t waiting(int64_t codes) const { return std::min(codes, std::max(AsyncWriter::kMaxBytes, largest_)); }
  bool reads_first(const Layer& layer) const {
    const auto reads = [&](const Layer& other) { return other.input == layer.input; };
    return std::find_if(block_.layers.begin(), block_.layers.end(), reads)->id == layer.id;
  }
  int64_t solving_layer(const Port& port, int64_t work) const {
    const int64_t triangle = port.features * port.features / 2 * kFloatBytes;
    const int64_t panels =
        2 * std::min(port.features, quant::UpperTriangle::kPanelRows) * port.features * kFloatBytes;
    if (!observed_.factorizes(port.id)) return work;
    return panels + triangle + std::max(work, triangle);  // made in fp64, where fp32 does not do
  }

  MemoryMode mode_;
  const BlockPlan& block_;
  int64_t size_, tokens_, batch_, proved_ = 0;
  StatisticSet observed_;
  bool forward_ = false, folds_ = false, keeps_copies_ = false;
  int64_t weights_ = 0, largest_ = 0, widest_ = 0, copies_ = 1, products_ = 0, largest_work_ = 0;
  std::vector<int64_t> statistics_;  ///< by port
  std::vector<int64_t> work_;        ///< by layer: what its algorithms hold beside it
};

}  // namespace

int64_t peak_bytes(const RunConfig& config, const Model& model, const std::vector<OutputPlan>& outputs,
                   MemoryMode mode) {
  std::vector<BlockMemory> blocks;  // that are made new
  MeasuredStatistics measured;
  int64_t left = 0;
  for (const BlockPlan& block : model.plan.blocks) {
    const auto changes = [&](const OutputPlan& output) { return output.plan.changes(block); };
    if (std::none_of(outputs.begin(), outputs.end(), changes)) continue;
    blocks.emplace_back(config, model, outputs, mode, block, measured);
    left += blocks.back().codes();
  }
  int64_t most = 0, ahead = 0, program = kProgramBytes;
  for (auto memory = blocks.rbegin(); memory != blocks.rend(); ++memory) {
    left -= memory->codes();
    most = std::max(most, memory->peak(ahead, left));
    ahead = memory->weights();
    if (memory->runs_forward()) program = kProgramBytes + kPassBuffers;
  }
  return program + most;
}

int64_t least_bytes(const RunConfig& config, const Model& model, const std::vector<OutputPlan>& outputs) {
  RunConfig smallest = config;
  smallest.batch_size = 1;
  return peak_bytes(smallest, model, outputs, {.read_ahead = false, .spill = true});
}

Result<MemoryMode> choose_memory_mode(const RunConfig& config, const Model& model,
                                      const std::vector<OutputPlan>& outputs) {
  if (config.max_memory == 0) return MemoryMode{};
  constexpr MemoryMode kModes[] = {{true, false}, {true, true}, {false, true}};
  for (const MemoryMode mode : kModes) {
    if (peak_bytes(config, model, outputs, mode) <= config.max_memory) return mode;
  }
  const int64_t least = least_bytes(config, model, outputs);
  const std::string message = "the run takes at least " +
                              bytes_text(peak_bytes(config, model, outputs, kModes[2])) +
                              " of memory, run.max_memory allows " + bytes_text(config.max_memory) + "; ";
  if (least <= config.max_memory)
    return Status(Code::kOutOfMemory, message + "with --batch-size 1 " + bytes_text(least) + " would do");
  return Status(Code::kOutOfMemory,
                message + "the least that would do is " + bytes_text(least) +
                    ", with --batch-size 1; shorter samples (--max-seq-length) take less");
}

}  // namespace slim
