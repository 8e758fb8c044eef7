#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "commands/commands.h"
#include "commands/eval_set.h"
#include "commands/eval_subject.h"
#include "model/open_backend.h"
#include "plugin/guard.h"
#include "report/notes.h"
#include "report/source_notes.h"
#include "slim/ops.hpp"
#include "util/strict_json.h"

namespace slim {
namespace {

struct Scores {
  double nll = 0, kl = 0, tokens = 0, exact = 0, questions = 0;
};

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

/// Rows of a packed batch that predict known tokens, and those tokens.
std::pair<at::Tensor, at::Tensor> scored_rows(const EvalSet& set, size_t first, size_t last) {
  std::vector<int64_t> rows, targets;
  int64_t offset = 0;
  for (size_t i = first; i < last; ++i) {
    const Scored& scored = set.sequences[i];
    for (size_t k = 0; k < scored.targets.size(); ++k)
      rows.push_back(offset + scored.first_row + static_cast<int64_t>(k));
    targets.insert(targets.end(), scored.targets.begin(), scored.targets.end());
    offset += scored.sample.tensors.at("input_ids").size(0);
  }
  return {at::tensor(rows, at::kLong), at::tensor(targets, at::kLong)};
}

class Evaluation {
 public:
  Evaluation(const EvalConfig& config, PluginRegistry& registry, Progress& progress)
      : config_(config), registry_(registry), progress_(progress) {}

  Result<Report> run() {
    const c10::NoGradGuard no_grad;
    SLIM_ASSIGN(const auto files, evaluation_files(config_.data));
    SLIM_ASSIGN(backend_, open_backend(config_.backend, registry_));
    ops::force_reference(config_.kernels == "reference");
    SLIM_ASSIGN(model_, EvalSubject::open(config_.model, config_, registry_, backend_.device, notes_));
    if (!config_.reference.empty()) {
      SLIM_ASSIGN(reference_,
                  EvalSubject::open(config_.reference, config_, registry_, backend_.device, notes_));
    }
    SLIM_ASSIGN(processor_, guarded(model_->model().adapter_id,
                                    [&] { return model_->model().adapter->processor(config_.model); }));
    if (!model_->model().weights->quantized()) SLIM_TRY(note_source(model_->model(), notes_));
    nlohmann::ordered_json json = {{"model", config_.model}, {"backend", backend_.id}};
    describe(*model_, json);
    if (reference_) describe(*reference_, json["reference"] = {{"model", config_.reference}});
    for (const std::string& file : files) SLIM_TRY(evaluate_file(file, json));
    if (files_scored_ == 0) {
      return Status(Code::kInvalidArgument,
                    config_.data + ": the model can take none of the samples" +
                        (first_left_out_.empty() ? "" : ", the first: " + first_left_out_));
    }
    summarize(model_totals_, json);
    if (reference_) summarize(reference_totals_, json["reference"]);
    for (const auto& [name, kind] : notes_.kinds())
      json["notes"][name] = {{"count", kind.count}, {"examples", kind.examples}};
    return Report{table(json) + notes_.text(), json_text(json)};
  }

 private:
  struct Totals {
    Scores text, answers;
  };

  Status evaluate_file(const std::string& file, nlohmann::ordered_json& json) {
    SLIM_ASSIGN(const EvalSet set, read_eval_set(file, *processor_, config_));
    report_left_out(set, json);
    if (set.sequences.empty()) return {};
    ++files_scored_;
    SLIM_ASSIGN(const std::vector<Carry> batches, model_->run(set, progress_));
    std::vector<Carry> reference_batches;
    if (reference_) {
      SLIM_ASSIGN(reference_batches, reference_->run(set, progress_));
    }
    Scores scores, reference_scores;
    for (size_t i = 0; i < batches.size(); ++i) {
      SLIM_TRY(score_batch(set, i, batches[i], reference_ ? &reference_batches[i] : nullptr, scores,
                           reference_scores));
    }
    if (set.answers && config_.generate) {
      SLIM_TRY(score_answers(set, *model_, scores, json["files"][set.name]));
      if (reference_)
        SLIM_TRY(score_answers(set, *reference_, reference_scores, json["reference"]["files"][set.name]));
    }
    add(set, scores, model_totals_, json["files"][set.name]);
    if (reference_) add(set, reference_scores, reference_totals_, json["reference"]["files"][set.name]);
    return {};
  }

  /// A folder may hold samples that the model cannot take beside those that it can.
  void report_left_out(const EvalSet& set, nlohmann::ordered_json& json) {
    if (set.left_out.empty()) return;
    if (first_left_out_.empty()) first_left_out_ = set.left_out.front();
    json["files"][set.name]["left_out"] = set.left_out;
    progress_.warn(set.name + ": " + std::to_string(set.left_out.size()) +
                   " samples left out, the first: " + set.left_out.front());
  }

  /// Negative log-likelihood of the targets and, against a reference, KL(reference || model), a few rows of logits at a time.
  Status score_batch(const EvalSet& set, size_t batch, const Carry& carry, const Carry* reference,
                     Scores& scores, Scores& reference_scores) {
    constexpr int64_t kRowsAtOnce = 128;
    const size_t first = batch * config_.batch_size;
    const auto [rows, targets] =
        scored_rows(set, first, std::min(set.sequences.size(), first + config_.batch_size));
    for (int64_t begin = 0; begin < rows.size(0); begin += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, rows.size(0) - begin);
      const at::Tensor some = rows.narrow(0, begin, count);
      SLIM_ASSIGN(const at::Tensor log_p, model_->log_probabilities(carry, some));
      const at::Tensor target = targets.narrow(0, begin, count).unsqueeze(1).to(log_p.device());
      scores.nll -= log_p.gather(1, target).sum().item<double>();
      scores.tokens += static_cast<double>(count);
      if (!reference) continue;
      SLIM_ASSIGN(const at::Tensor log_r, reference_->log_probabilities(*reference, some));
      reference_scores.nll -= log_r.gather(1, target).sum().item<double>();
      reference_scores.tokens += static_cast<double>(count);
      scores.kl += (log_r.exp() * (log_r - log_p)).sum().item<double>();
    }
    return {};
  }

  Status score_answers(const EvalSet& set, EvalSubject& subject, Scores& scores,
                       nlohmann::ordered_json& json) {
    SLIM_ASSIGN(const auto answers, subject.answer(set, processor_->stop_tokens(), progress_));
    for (size_t i = 0; i < answers.size(); ++i) {
      SLIM_ASSIGN(const std::string text, processor_->decode(answers[i]));
      json["answers"].push_back(trimmed(text));
      scores.exact += trimmed(text) == trimmed(set.questions[i].answer);
      scores.questions += 1;
    }
    return {};
  }

  void add(const EvalSet& set, const Scores& scores, Totals& totals, nlohmann::ordered_json& json) {
    Scores& total = set.answers ? totals.answers : totals.text;
    total.nll += scores.nll;
    total.kl += scores.kl;
    total.tokens += scores.tokens;
    total.exact += scores.exact;
    total.questions += scores.questions;
    json["tokens"] = scores.tokens;
    json["nll"] = scores.nll / scores.tokens;
    json["perplexity"] = std::exp(scores.nll / scores.tokens);
    if (reference_ && &totals == &model_totals_) json["kl"] = scores.kl / scores.tokens;
    if (scores.questions > 0) json["exact"] = scores.exact / scores.questions;
  }

  void summarize(const Totals& totals, nlohmann::ordered_json& json) const {
    const bool with_kl = reference_ && &totals == &model_totals_;
    if (totals.text.tokens > 0) {
      json["text_perplexity"] = std::exp(totals.text.nll / totals.text.tokens);
      if (with_kl) json["text_kl"] = totals.text.kl / totals.text.tokens;
    }
    if (totals.answers.tokens > 0) {
      json["answers_nll"] = totals.answers.nll / totals.answers.tokens;
      if (with_kl) json["answers_kl"] = totals.answers.kl / totals.answers.tokens;
    }
    if (totals.answers.questions > 0) json["answers_exact"] = totals.answers.exact / totals.answers.questions;
  }

  /// Size on disk; bits per weight of the linear layers that are quantized, or of all of them when none is.
  static void describe(const EvalSubject& subject, nlohmann::ordered_json& json) {
    const WeightSource& weights = *subject.model().weights;
    double bits = 0, count = 0, all = 0;
    for (const BlockPlan& block : subject.model().plan.blocks) {
      for (const Layer& layer : block.layers) {
        const StoredLayer* stored = weights.stored(layer.name);
        if (weights.quantized() != (stored != nullptr)) continue;
        count += static_cast<double>(layer.out) * static_cast<double>(layer.in);
        if (!stored)
          bits += 8.0 * c10::elementSize(weights.dtype()) * static_cast<double>(layer.out) *
                  static_cast<double>(layer.in);
        else
          for (const std::string& name : stored->tensors)
            bits += 8.0 * static_cast<double>(byte_size(weights.checkpoint().tensors().at(name)).value_or(0));
      }
    }
    for (const auto& [name, spec] : weights.logical()) {
      double elements = 1;
      for (const int64_t size : spec.shape) elements *= static_cast<double>(size);
      all += elements;
    }
    json["bytes_on_disk"] = weights.checkpoint().total_bytes();
    json["bits_per_weight"] = bits / std::max(1.0, count);
    json["bits_per_parameter"] =
        8.0 * static_cast<double>(weights.checkpoint().total_bytes()) / std::max(1.0, all);
  }

  static std::string table(const nlohmann::ordered_json& json) {
    const std::pair<const char*, const char*> rows[] = {
        {"bytes_on_disk", "bytes on disk"},           {"bits_per_weight", "bits per linear weight"},
        {"bits_per_parameter", "bits per parameter"}, {"text_perplexity", "perplexity (text)"},
        {"text_kl", "KL divergence (text)"},          {"answers_nll", "loss of answers"},
        {"answers_kl", "KL divergence (answers)"},    {"answers_exact", "answers exactly right"}};
    const bool with_reference = json.contains("reference");
    char line[160];
    std::snprintf(line, sizeof line, "%-26s %16s %16s\n", "", with_reference ? "reference" : "", "model");
    std::string text = line;
    const auto cell = [](const nlohmann::ordered_json& from, const char* key) -> std::string {
      if (!from.contains(key)) return "";
      char number[40];
      const double value = from[key].get<double>();
      std::snprintf(number, sizeof number, std::string_view(key) == "bytes_on_disk" ? "%.0f" : "%.5f", value);
      return number;
    };
    for (const auto& [key, label] : rows) {
      if (!json.contains(key)) continue;
      std::snprintf(line, sizeof line, "%-26s %16s %16s\n", label,
                    with_reference ? cell(json["reference"], key).c_str() : "", cell(json, key).c_str());
      text += line;
    }
    return text;
  }

  const EvalConfig& config_;
  PluginRegistry& registry_;
  Progress& progress_;
  OpenBackend backend_;
  RunNotes notes_;
  std::unique_ptr<EvalSubject> model_, reference_;
  std::unique_ptr<Processor> processor_;
  Totals model_totals_, reference_totals_;
  size_t files_scored_ = 0;
  std::string first_left_out_;
};

}  // namespace

Progress::~Progress() = default;

Result<Report> evaluate(const EvalConfig& config, PluginRegistry& registry, Progress& progress) {
  return Evaluation(config, registry, progress).run();
}

}  // namespace slim
