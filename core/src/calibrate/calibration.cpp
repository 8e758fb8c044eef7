#include "calibrate/calibration.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>

#include "data/dataset.h"
#include "data/shuffle.h"
#include "plugin/guard.h"
#include "util/device_moves.h"

namespace slim {
namespace {

/// {"caption_de", "text"} of "caption_de=text".
Result<std::map<std::string, std::string>> columns_of(const RunConfig& config) {
  std::map<std::string, std::string> columns;
  for (const std::string& entry : config.columns) {
    const size_t sign = entry.find('=');
    if (sign == std::string::npos || sign == 0 || sign + 1 == entry.size())
      return Status(Code::kInvalidArgument, "dataset.columns: expected THEIRS=OURS, found '" + entry + "'");
    columns[entry.substr(0, sign)] = entry.substr(sign + 1);
  }
  return columns;
}

Result<Dataset> read_documents(const RunConfig& config) {
  const bool pieces =
      config.text_unit == "pieces";  // how many samples a document gives is known only when it is tokenized
  DatasetOptions options;
  options.num_samples = pieces ? 0 : config.num_samples;
  options.shuffle = config.shuffle && !pieces;
  options.seed = config.seed;
  options.text = config.text_unit == "lines" ? TextUnit::kLine : TextUnit::kFile;
  options.image_prompt = config.calib_prompt;
  options.skip_bad_samples = config.skip_bad_samples;
  options.allow_outside = config.allow_outside;
  options.split = config.split;
  SLIM_ASSIGN(options.columns, columns_of(config));
  return read_dataset(config.calib, options);
}

class BatchBuilder {
 public:
  BatchBuilder(const Model& model, BlockExec& exec, const Spill& spill, int64_t batch_size,
               Calibration& calibration)
      : model_(model),
        exec_(exec),
        spill_(spill),
        batch_size_(static_cast<size_t>(batch_size)),
        calibration_(calibration) {}

  Status add(Sample sample) {
    calibration_.samples.push_back(
        {sample.origin, sample.text_tokens, sample.image_tokens, sample.downscaled});
    calibration_.text_tokens += sample.text_tokens;
    calibration_.image_tokens += sample.image_tokens;
    tokens_ += sample.text_tokens + sample.image_tokens;
    pending_.push_back(std::move(sample));
    return pending_.size() < samples_of_batch() ? Status{} : begin();
  }

  Status begin() {
    if (pending_.empty()) return {};
    SLIM_ASSIGN(const Carry carry, begun());
    if (tokens_ < fewest_) {
      fewest_ = tokens_;
      calibration_.smallest = calibration_.batches.size();
    }
    SLIM_ASSIGN(Carry stored, spill_.store(carry_on(carry, at::kCPU)));
    calibration_.batches.push_back(std::move(stored));
    pending_.clear();
    tokens_ = 0;
    return {};
  }

 private:
  /// The first sample is a batch of its own: folded scales are proved on the smallest one. Of a mixture a whole batch, which reaches more experts.
  size_t samples_of_batch() const {
    const auto& blocks = model_.plan.blocks;
    const bool mixture = std::any_of(blocks.begin(), blocks.end(),
                                     [](const BlockPlan& block) { return block.moe.has_value(); });
    return calibration_.batches.empty() && !mixture ? 1 : batch_size_;
  }

  /// On the device, or where that has no memory for it on the host.
  Result<Carry> begun() {
    Result<Carry> carry = model_.begin(pending_, exec_);
    if (carry.ok() || carry.status().code() != Code::kOutOfMemory || exec_.device().is_cpu()) return carry;
    ++calibration_.begun_on_host;
    BlockExec host(*model_.weights, exec_.dtype());
    return model_.begin(pending_, host);
  }

  const Model& model_;
  BlockExec& exec_;
  const Spill& spill_;
  size_t batch_size_;
  Calibration& calibration_;
  std::vector<Sample> pending_;
  int64_t tokens_ = 0, fewest_ = std::numeric_limits<int64_t>::max();
};

/// A text's sample as samples of at most `length` tokens, nothing left out.
std::vector<Sample> cut_into_pieces(const Sample& whole, int64_t length) {
  const at::Tensor& ids = whole.tensors.at("input_ids");
  std::vector<Sample> pieces;
  for (int64_t begin = 0; begin < ids.size(0); begin += length) {
    Sample piece;
    piece.text_tokens = std::min(length, ids.size(0) - begin);
    piece.tensors["input_ids"] = ids.narrow(0, begin, piece.text_tokens).clone();
    piece.origin = whole.origin + " piece " + std::to_string(pieces.size() + 1);
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

/// Makes samples of documents, and decides what becomes of a document that makes none.
class SampleReader {
 public:
  SampleReader(const RunConfig& config, const Processor& processor, Calibration& calibration)
      : config_(config), processor_(processor), calibration_(calibration) {}

  Result<std::vector<Sample>> read(const Document& document) const {
    const bool pieces = config_.text_unit == "pieces" && document.messages.empty();
    EncodeOptions options;
    options.max_tokens = pieces ? 0 : config_.max_seq_length;
    auto sample = guarded(document.origin, [&] { return processor_.encode(document, options); });
    std::vector<Sample> samples;
    if (sample.ok() && pieces) return cut_into_pieces(*sample, config_.max_seq_length);
    if (sample.ok())
      samples.push_back(*std::move(sample));
    else if (sample.status().code() == Code::kUnsupported)
      calibration_.left_out.push_back(sample.status().message());
    else if (config_.skip_bad_samples)
      calibration_.skipped.push_back(sample.status().message());
    else
      return sample.status();
    return samples;
  }

 private:
  const RunConfig& config_;
  const Processor& processor_;
  Calibration& calibration_;
};

Status no_samples(const RunConfig& config, const Calibration& calibration) {
  const auto count = [](const std::vector<std::string>& reasons, const char* what) {
    return reasons.empty() ? "" : "; " + std::to_string(reasons.size()) + what + reasons.front();
  };
  return {Code::kInvalidArgument, config.calib + ": no usable sample" +
                                      count(calibration.left_out, " left out, the first: ") +
                                      count(calibration.skipped, " skipped, the first: ")};
}

/// Samples in the order in which they are used: as they come, or drawn among all pieces of texts.
class SampleOrder {
 public:
  SampleOrder(const RunConfig& config, BatchBuilder& builder)
      : draw_(config.shuffle && config.text_unit == "pieces"),
        left_(config.num_samples),
        builder_(builder),
        drawn_(config.seed, static_cast<size_t>(config.num_samples)) {}

  bool full() const { return left_ == 0; }
  Status add(std::vector<Sample> samples) {
    for (Sample& sample : samples) {
      if (draw_)
        drawn_.add(std::move(sample));
      else if (left_ > 0)
        SLIM_TRY(use(std::move(sample)));
    }
    return {};
  }
  Status finish() {
    for (Sample& sample : std::move(drawn_).take()) SLIM_TRY(use(std::move(sample)));
    return builder_.begin();
  }

 private:
  Status use(Sample sample) {
    --left_;
    return builder_.add(std::move(sample));
  }

  bool draw_;
  int64_t left_;
  BatchBuilder& builder_;
  RandomSelection<Sample> drawn_;
};

/// What a calibration lacks, though it runs.
void remark_size(const RunConfig& config, const Model& model, Calibration& calibration) {
  const auto samples = static_cast<int64_t>(calibration.samples.size());
  auto& remarks = calibration.remarks;
  if (samples < config.num_samples)
    remarks.push_back("the data set gave " + std::to_string(samples) + " samples of the " +
                      std::to_string(config.num_samples) + " asked for");
  int64_t widest = 0;
  bool sees = false;
  for (const BlockPlan& block : model.plan.blocks) {
    sees = sees || block.stage == "vision";
    for (const Layer& layer : block.layers)
      if (block.stage == "language") widest = std::max(widest, layer.in);
  }
  if (sees && calibration.image_tokens == 0)
    remarks.emplace_back("no image tokens: this vision-language model was calibrated on text alone");
  if (calibration.tokens() < widest)
    remarks.push_back(std::to_string(calibration.tokens()) + " tokens are few for layers of " +
                      std::to_string(widest) + " channels: take more samples, or longer ones");
}

}  // namespace

Result<std::unique_ptr<Processor>> open_processor(const RunConfig& config, const Model& model) {
  auto processor = guarded(model.adapter_id, [&] { return model.adapter->processor(config.model); });
  if (processor.ok()) return processor;
  return Status(processor.status().code(),
                processor.status().message() +
                    "; algorithms that take no calibration data (rtn, fp8) need no tokenizer");
}

Status check_calibration_data(const RunConfig& config, const Model& model) {
  SLIM_ASSIGN(const Dataset dataset, read_documents(config));
  SLIM_ASSIGN(const auto processor, open_processor(config, model));
  Calibration tried;
  const SampleReader reader(config, *processor, tried);
  for (const Document& document : dataset.documents) {
    SLIM_ASSIGN(const std::vector<Sample> samples, reader.read(document));
    if (!samples.empty()) return {};
  }
  return no_samples(config, tried);
}

Result<Calibration> calibrate_input(const RunConfig& config, const Model& model, BlockExec& exec,
                                    Progress& progress, const Spill& spill) {
  const c10::NoGradGuard no_grad;
  SLIM_ASSIGN(const Dataset dataset, read_documents(config));
  SLIM_ASSIGN(const auto processor, open_processor(config, model));
  Calibration calibration;
  calibration.skipped = dataset.skipped;
  calibration.remarks = dataset.remarks;
  const SampleReader reader(config, *processor, calibration);
  BatchBuilder builder(model, exec, spill, config.batch_size, calibration);
  SampleOrder order(config, builder);
  progress.begin("reading samples", static_cast<int64_t>(dataset.documents.size()));
  for (const Document& document : dataset.documents) {
    if (order.full()) break;
    SLIM_ASSIGN(std::vector<Sample> samples, reader.read(document));
    SLIM_TRY(order.add(std::move(samples)));
    progress.step(document.origin);
    if (progress.cancelled()) return Status(Code::kCancelled, "interrupted while reading samples");
  }
  SLIM_TRY(order.finish());
  exec.release_globals();
  if (calibration.batches.empty()) return no_samples(config, calibration);
  remark_size(config, model, calibration);
  for (const std::string& remark : calibration.remarks) progress.warn(remark);
  return calibration;
}

}  // namespace slim
