#include "commands/eval_subject.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>

#include "model/device_memory.h"
#include "plugin/guard.h"

namespace slim {
namespace {

constexpr std::string_view kLanguageStage = "language";

int64_t available_memory(at::Device device) {
  if (!device.is_cpu()) return free_device_memory(device);
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (int64_t kilobytes; file >> key >> kilobytes; file.ignore(256, '\n')) {
    if (key == "MemAvailable:") return kilobytes * 1024;
  }
  return int64_t{1} << 30;
}

/// Hides the steps of single passes; an interrupt still ends them.
class InnerProgress final : public Progress {
 public:
  explicit InnerProgress(Progress& outer) : outer_(outer) {}
  void begin(std::string_view, int64_t) override {}
  void step(std::string_view) override {}
  void warn(std::string_view message) override { outer_.warn(message); }
  bool cancelled() override { return outer_.cancelled(); }

 private:
  Progress& outer_;
};

/// Leaves the entries at `places` (ascending) of each list.
template <class... T>
void keep_only(const std::vector<size_t>& places, std::vector<T>&... lists) {
  const auto keep = [&](auto& list) {
    for (size_t i = 0; i < places.size(); ++i) {
      if (places[i] != i) list[i] = std::move(list[places[i]]);
    }
    list.erase(list.begin() + static_cast<ptrdiff_t>(places.size()), list.end());
  };
  (keep(lists), ...);
}

}  // namespace

/// The questions of one batch.
struct EvalSubject::AnswerBatch {
  size_t first = 0;  ///< index of the first question
  std::vector<bool> ended;

  /// Appends a token to every answer that has not ended; false if now all have.
  bool take(const at::Tensor& tokens, const std::vector<int64_t>& stop,
            std::vector<std::vector<int64_t>>& answers) {
    const std::vector<int64_t> ids = token_ids(tokens);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (std::find(stop.begin(), stop.end(), ids[i]) != stop.end()) ended[i] = true;
      if (!ended[i]) answers[first + i].push_back(ids[i]);
    }
    return std::find(ended.begin(), ended.end(), false) != ended.end();
  }
};

EvalSubject::EvalSubject(Model model, at::ScalarType dtype, const EvalConfig& config, at::Device device,
                         Notes& notes)
    : config_(config),
      model_(std::move(model)),
      pass_(model_, {.dtype = dtype, .device = device}, available_memory(device) / 4, notes) {}

Result<std::unique_ptr<EvalSubject>> EvalSubject::open(const std::string& folder, const EvalConfig& config,
                                                       PluginRegistry& registry, at::Device device,
                                                       Notes& notes) {
  SLIM_ASSIGN(Model model, Model::open(folder, config.adapter, registry));
  SLIM_ASSIGN(const at::ScalarType dtype, model.compute_dtype(config.dtype));
  return std::unique_ptr<EvalSubject>(new EvalSubject(std::move(model), dtype, config, device, notes));
}

Result<std::vector<Carry>> EvalSubject::run(const EvalSet& set, Progress& progress) {
  std::vector<const Sample*> samples;
  for (const Scored& scored : set.sequences) samples.push_back(&scored.sample);
  progress.begin("scoring " + set.name,
                 static_cast<int64_t>(model_.plan.blocks.size()) - 1);  // all but the head
  SLIM_ASSIGN(std::vector<Carry> batches, begin(samples));
  SLIM_TRY(pass_.run(batches, "", nullptr, &progress));
  return batches;
}

Result<at::Tensor> EvalSubject::log_probabilities(const Carry& carry, const at::Tensor& rows) {
  SLIM_ASSIGN(const at::Tensor logits, pass_.logits(carry, rows));
  return at::log_softmax(logits, -1);
}

Result<std::vector<std::vector<int64_t>>> EvalSubject::answer(const EvalSet& set,
                                                              const std::vector<int64_t>& stop,
                                                              Progress& progress) {
  std::vector<const Sample*> prompts;
  for (const Question& question : set.questions) prompts.push_back(&question.prompt);
  progress.begin("answering " + set.name, config_.max_new_tokens);
  InnerProgress inner(progress);
  SLIM_ASSIGN(std::vector<Carry> batches, begin(prompts));
  std::vector<MemoryCache> caches(batches.size());
  SLIM_TRY(pass_.run(batches, "", &caches, &inner));
  progress.step("questions read");
  std::vector<std::vector<int64_t>> answers(prompts.size());
  std::vector<AnswerBatch> open = answer_batches(prompts.size());
  for (int64_t step = 1;; ++step) {
    SLIM_ASSIGN(std::vector<at::Tensor> tokens, next_tokens(batches));
    std::vector<size_t> going_on;
    for (size_t i = 0; i < batches.size(); ++i) {
      if (open[i].take(tokens[i], stop, answers)) going_on.push_back(i);
    }
    if (going_on.empty() || step >= config_.max_new_tokens) return answers;
    keep_only(going_on, batches, tokens, caches, open);
    SLIM_TRY(next_step(batches, tokens, caches, inner));
    progress.step("token " + std::to_string(step));
  }
}

Result<std::vector<Carry>> EvalSubject::begin(const std::vector<const Sample*>& samples) {
  const auto size = static_cast<size_t>(config_.batch_size);
  std::vector<Carry> batches;
  for (size_t first = 0; first < samples.size(); first += size) {
    std::vector<Sample> batch;
    for (size_t i = first; i < std::min(samples.size(), first + size); ++i) batch.push_back(*samples[i]);
    SLIM_ASSIGN(Carry carry, model_.begin(batch, pass_.exec()));
    batches.push_back(std::move(carry));
  }
  return batches;
}

std::vector<EvalSubject::AnswerBatch> EvalSubject::answer_batches(size_t questions) const {
  const auto size = static_cast<size_t>(config_.batch_size);
  std::vector<AnswerBatch> batches;
  for (size_t first = 0; first < questions; first += size) {
    batches.push_back({first, std::vector<bool>(std::min(size, questions - first), false)});
  }
  return batches;
}

Result<std::vector<at::Tensor>> EvalSubject::next_tokens(const std::vector<Carry>& batches) {
  std::vector<at::Tensor> tokens;
  for (const Carry& carry : batches) {
    SLIM_ASSIGN(const at::Tensor logits, pass_.logits(carry, carry.at("lengths").cumsum(0) - 1));
    tokens.push_back(logits.argmax(-1).cpu());
  }
  return tokens;
}

Status EvalSubject::next_step(std::vector<Carry>& batches, const std::vector<at::Tensor>& tokens,
                              std::vector<MemoryCache>& caches, Progress& progress) {
  for (size_t i = 0; i < batches.size(); ++i) {
    pass_.exec().set_block(nullptr, nullptr);
    SLIM_ASSIGN(batches[i], guarded(model_.adapter_id, [&] {
                  return model_.adapter->next(batches[i], tokens[i], pass_.exec());
                }));
  }
  return pass_.run(batches, kLanguageStage, &caches, &progress);
}

}  // namespace slim
