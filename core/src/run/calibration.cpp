#include "run/calibration.h"

#include <c10/core/GradMode.h>

#include "data/dataset.h"
#include "plugin/guard.h"

namespace slim {
namespace {

Result<Dataset> read_documents(const RunConfig& config) {
  DatasetOptions options;
  options.num_samples = config.num_samples;
  options.shuffle = config.shuffle;
  options.seed = config.seed;
  options.image_prompt = config.calib_prompt;
  options.skip_bad_samples = config.skip_bad_samples;
  return read_dataset(config.calib, options);
}

class BatchBuilder {
 public:
  BatchBuilder(const Model& model, BlockExec& exec, Calibration& calibration)
      : model_(model), exec_(exec), calibration_(calibration) {}

  void add(Sample sample) {
    calibration_.samples++;
    calibration_.text_tokens += sample.text_tokens;
    calibration_.image_tokens += sample.image_tokens;
    calibration_.downscaled += sample.downscaled;
    tokens_ += sample.text_tokens + sample.image_tokens;
    pending_.push_back(std::move(sample));
  }
  size_t size() const { return pending_.size(); }

  Status begin() {
    if (pending_.empty()) return {};
    SLIM_ASSIGN(Carry carry, model_.begin(pending_, exec_));
    if (tokens_ < fewest_) {
      fewest_ = tokens_;
      calibration_.smallest = calibration_.batches.size();
    }
    calibration_.batches.push_back(std::move(carry));
    pending_.clear();
    tokens_ = 0;
    return {};
  }

 private:
  const Model& model_;
  BlockExec& exec_;
  Calibration& calibration_;
  std::vector<Sample> pending_;
  int64_t tokens_ = 0, fewest_ = std::numeric_limits<int64_t>::max();
};

void leave_out(const Status& why, Calibration& calibration) {
  if (calibration.left_out++ == 0) calibration.first_left_out = why.message();
}

Status no_samples(const RunConfig& config, const Calibration& calibration) {
  const auto count = [](size_t n, const std::string& what, const std::string& first) {
    return n ? "; " + std::to_string(n) + " " + what + ", the first: " + first : "";
  };
  return {Code::kInvalidArgument,
          config.calib + ": no usable sample" + count(calibration.left_out, "are not for this model", calibration.first_left_out) +
              count(calibration.skipped.size(), "were skipped", calibration.skipped.empty() ? "" : calibration.skipped.front())};
}

}  // namespace

Result<Calibration> calibrate_input(const RunConfig& config, const Model& model, BlockExec& exec, Progress& progress) {
  const c10::NoGradGuard no_grad;
  SLIM_ASSIGN(const Dataset dataset, read_documents(config));
  SLIM_ASSIGN(const auto processor, guarded(model.adapter_id, [&] { return model.adapter->processor(config.model); }));
  Calibration calibration;
  calibration.skipped = dataset.skipped;
  EncodeOptions options;
  options.max_tokens = config.max_seq_length;
  BatchBuilder builder(model, exec, calibration);
  progress.begin("reading samples", static_cast<int64_t>(dataset.documents.size()));
  for (const Document& document : dataset.documents) {
    auto sample = guarded(document.origin, [&] { return processor->encode(document, options); });
    if (sample.ok()) builder.add(*std::move(sample));
    else if (sample.status().code() == Code::kUnsupported) leave_out(sample.status(), calibration);
    else if (config.skip_bad_samples) calibration.skipped.push_back(sample.status().message());
    else return sample.status();
    if (static_cast<int64_t>(builder.size()) >= config.batch_size) SLIM_TRY(builder.begin());
    progress.step(document.origin);
    if (progress.cancelled()) return Status(Code::kCancelled, "interrupted while reading samples");
  }
  SLIM_TRY(builder.begin());
  exec.release_globals();
  if (calibration.batches.empty()) return no_samples(config, calibration);
  return calibration;
}

}  // namespace slim
