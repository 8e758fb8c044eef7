#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "plugin/guard.h"
#include "run/commands.h"
#include "run/model.h"
#include "run/run_report.h"

namespace slim {
namespace {

constexpr std::string_view kLanguageStage = "language";

/// One sequence to score: rows of its hidden states whose next token is known.
struct Scored {
  Sample sample;
  int64_t first_row = 0;             ///< the row that predicts targets[0]
  std::vector<int64_t> targets;
};
struct Question {
  Sample prompt;
  std::string answer, origin;
};
/// One evaluation file.
struct EvalSet {
  std::string name;
  bool answers = false;              ///< questions with answers; else plain text
  std::vector<Scored> sequences;
  std::vector<Question> questions;   ///< as many as sequences, if `answers`
  std::vector<std::string> left_out; ///< samples that the model cannot take (images for a text model): "eval.jsonl:3: why"
};
struct Scores {
  double nll = 0, kl = 0, tokens = 0, exact = 0, questions = 0;
};

std::vector<int64_t> to_vector(const at::Tensor& ids) {
  const at::Tensor flat = ids.to(at::kLong).contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (int64_t kilobytes; file >> key >> kilobytes; file.ignore(256, '\n')) {
    if (key == "MemAvailable:") return kilobytes * 1024;
  }
  return int64_t{1} << 30;
}

// ---- reading ----------------------------------------------------------------------------------------------------------

/// Files of an evaluation folder: those named eval*, or all when there are none.
Result<std::vector<std::string>> data_files(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_directory(path, error)) return std::vector<std::string>{path};
  std::vector<std::string> all, evaluation;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    const std::string extension = entry.path().extension();
    if (extension != ".jsonl" && extension != ".txt" && extension != ".parquet") continue;
    all.push_back(entry.path());
    if (entry.path().filename().string().starts_with("eval")) evaluation.push_back(entry.path());
  }
  auto& files = evaluation.empty() ? all : evaluation;
  if (files.empty()) return Status(Code::kNotFound, path + ": no .jsonl, .txt or .parquet file to evaluate on");
  std::sort(files.begin(), files.end());
  return files;
}

class EvalReader {
 public:
  EvalReader(const Processor& processor, const EvalConfig& config) : processor_(processor), config_(config) {}

  Result<EvalSet> read(const std::string& file) const {
    DatasetOptions options;
    options.num_samples = config_.limit;
    options.allow_outside = config_.allow_outside;
    SLIM_ASSIGN(const Dataset dataset, read_dataset(file, options));
    EvalSet set;
    set.name = std::filesystem::path(file).filename();
    for (const Document& document : dataset.documents) {
      const bool chat = !document.messages.empty();
      set.answers = set.answers || chat;
      const Status status = guarded(document.origin, [&] { return chat ? add_question(document, set) : add_text(document, set); });
      if (status.code() == Code::kUnsupported) set.left_out.push_back(status.message());
      else if (!status.ok()) return status;
    }
    if (set.sequences.empty()) {
      return Status(Code::kInvalidArgument, file + ": the model can take none of its " + std::to_string(dataset.documents.size()) +
                                                " samples" + (set.left_out.empty() ? "" : ", the first: " + set.left_out.front()));
    }
    return set;
  }

 private:
  Status add_text(const Document& document, EvalSet& set) const {
    SLIM_ASSIGN(Sample sample, processor_.encode(document, {}));
    auto ids = to_vector(sample.tensors.at("input_ids"));
    if (ids.size() < 2) return {};
    set.sequences.push_back({std::move(sample), 0, {ids.begin() + 1, ids.end()}});
    return {};
  }

  Status add_question(const Document& document, EvalSet& set) const {
    if (document.messages.back().role != "assistant" || document.messages.size() < 2) {
      return {Code::kInvalidArgument, "the chat does not end with the assistant's answer"};
    }
    Question question;
    question.origin = document.origin;
    for (const ContentPart& part : document.messages.back().content) question.answer += part.text;
    Document prompt = document;
    prompt.messages.pop_back();
    EncodeOptions options;
    options.generation_prompt = true;
    SLIM_ASSIGN(question.prompt, processor_.encode(prompt, options));
    SLIM_ASSIGN(std::vector<int64_t> answer, processor_.tokenize(question.answer));
    answer.push_back(processor_.stop_tokens().front());
    Scored scored;
    scored.sample = question.prompt;
    at::Tensor& ids = scored.sample.tensors["input_ids"];
    scored.first_row = ids.size(0) - 1;
    ids = at::cat({ids, at::tensor(answer, at::kLong)});
    scored.targets = std::move(answer);
    set.sequences.push_back(std::move(scored));
    set.questions.push_back(std::move(question));
    return {};
  }

  const Processor& processor_;
  const EvalConfig& config_;
};

// ---- one model --------------------------------------------------------------------------------------------------------

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

/// A model under evaluation.
class Subject {
 public:
  static Result<std::unique_ptr<Subject>> open(const std::string& folder, const EvalConfig& config, PluginRegistry& registry) {
    SLIM_ASSIGN(Model model, Model::open(folder, config.adapter, registry));
    SLIM_ASSIGN(const at::ScalarType dtype, model.compute_dtype(config.dtype));
    return std::unique_ptr<Subject>(new Subject(std::move(model), dtype, config));
  }
  const Model& model() const { return model_; }

  /// Hidden states of all sequences before the head: one carry a batch.
  Result<std::vector<Carry>> run(const EvalSet& set, Progress& progress) {
    std::vector<const Sample*> samples;
    for (const Scored& scored : set.sequences) samples.push_back(&scored.sample);
    progress.begin("scoring " + set.name, static_cast<int64_t>(model_.plan.blocks.size()) - 1);  // all but the head
    SLIM_ASSIGN(std::vector<Carry> batches, begin(samples));
    SLIM_TRY(pass_.run(batches, "", nullptr, &progress));
    return batches;
  }
  Result<at::Tensor> log_probabilities(const Carry& carry, const at::Tensor& rows) {
    SLIM_ASSIGN(const at::Tensor logits, pass_.logits(carry, rows));
    return at::log_softmax(logits, -1);
  }

  /// Greedy answers, one token at a time for all batches together; a batch whose answers have all ended leaves.
  Result<std::vector<std::vector<int64_t>>> answer(const EvalSet& set, const std::vector<int64_t>& stop, Progress& progress) {
    std::vector<const Sample*> prompts;
    for (const Question& question : set.questions) prompts.push_back(&question.prompt);
    progress.begin("answering " + set.name, config_.max_new_tokens + 1);
    InnerProgress inner(progress);
    SLIM_ASSIGN(std::vector<Carry> batches, begin(prompts));
    std::vector<MemoryCache> caches(batches.size());
    SLIM_TRY(pass_.run(batches, "", &caches, &inner));
    progress.step("questions read");
    std::vector<std::vector<int64_t>> answers(prompts.size());
    std::vector<AnswerBatch> open;
    for (size_t i = 0; i < batches.size(); ++i) open.push_back(answer_batch(i, answers.size()));
    for (int64_t step = 0; step < config_.max_new_tokens; ++step) {
      SLIM_ASSIGN(const std::vector<at::Tensor> tokens, next_tokens(batches));
      std::vector<size_t> going_on;
      for (size_t i = 0; i < batches.size(); ++i) {
        if (take_tokens(tokens[i], stop, open[i], answers)) going_on.push_back(i);
      }
      if (going_on.empty() || step + 1 == config_.max_new_tokens) break;
      keep_only(going_on, batches, caches, open);
      for (size_t i = 0; i < batches.size(); ++i) {
        pass_.exec().set_block(nullptr, nullptr);
        const at::Tensor& token = tokens[going_on[i]];
        SLIM_ASSIGN(batches[i], guarded(model_.adapter_id, [&] { return model_.adapter->next(batches[i], token, pass_.exec()); }));
      }
      SLIM_TRY(pass_.run(batches, kLanguageStage, &caches, &inner));
      progress.step("token " + std::to_string(step + 1));
    }
    return answers;
  }

 private:
  Subject(Model model, at::ScalarType dtype, const EvalConfig& config)
      : config_(config), model_(std::move(model)), pass_(model_, dtype, available_memory() / 4) {}

  Result<std::vector<Carry>> begin(const std::vector<const Sample*>& samples) {
    std::vector<Carry> batches;
    for (size_t first = 0; first < samples.size(); first += config_.batch_size) {
      std::vector<Sample> batch;
      for (size_t i = first; i < std::min(samples.size(), first + config_.batch_size); ++i) batch.push_back(*samples[i]);
      SLIM_ASSIGN(Carry carry, model_.begin(batch, pass_.exec()));
      batches.push_back(std::move(carry));
    }
    return batches;
  }

  /// The questions of one batch.
  struct AnswerBatch {
    size_t first = 0;        ///< index of the first question
    std::vector<bool> ended;
  };
  AnswerBatch answer_batch(size_t batch, size_t questions) const {
    const auto size = static_cast<size_t>(config_.batch_size);
    return {batch * size, std::vector<bool>(std::min(size, questions - batch * size), false)};
  }

  /// Appends a token to every answer of the batch that has not ended; false if now all have.
  static bool take_tokens(const at::Tensor& tokens, const std::vector<int64_t>& stop, AnswerBatch& batch,
                          std::vector<std::vector<int64_t>>& answers) {
    const std::vector<int64_t> ids = to_vector(tokens);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (std::find(stop.begin(), stop.end(), ids[i]) != stop.end()) batch.ended[i] = true;
      if (!batch.ended[i]) answers[batch.first + i].push_back(ids[i]);
    }
    return std::find(batch.ended.begin(), batch.ended.end(), false) != batch.ended.end();
  }

  /// Leaves the entries at `places` (ascending) of each list.
  template <class... T>
  static void keep_only(const std::vector<size_t>& places, std::vector<T>&... lists) {
    const auto keep = [&](auto& list) {
      for (size_t i = 0; i < places.size(); ++i) {
        if (places[i] != i) list[i] = std::move(list[places[i]]);
      }
      list.erase(list.begin() + static_cast<ptrdiff_t>(places.size()), list.end());
    };
    (keep(lists), ...);
  }

  Result<std::vector<at::Tensor>> next_tokens(const std::vector<Carry>& batches) {
    std::vector<at::Tensor> tokens;
    for (const Carry& carry : batches) {
      SLIM_ASSIGN(const at::Tensor logits, pass_.logits(carry, carry.at("lengths").cumsum(0) - 1));
      tokens.push_back(logits.argmax(-1));
    }
    return tokens;
  }

  const EvalConfig& config_;
  Model model_;
  ForwardPass pass_;
};

// ---- scoring ----------------------------------------------------------------------------------------------------------

/// Rows of a packed batch that predict known tokens, and those tokens.
std::pair<at::Tensor, at::Tensor> scored_rows(const EvalSet& set, size_t first, size_t last) {
  std::vector<int64_t> rows, targets;
  int64_t offset = 0;
  for (size_t i = first; i < last; ++i) {
    const Scored& scored = set.sequences[i];
    for (size_t k = 0; k < scored.targets.size(); ++k) rows.push_back(offset + scored.first_row + static_cast<int64_t>(k));
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
    SLIM_ASSIGN(const auto files, data_files(config_.data));
    SLIM_ASSIGN(model_, Subject::open(config_.model, config_, registry_));
    if (!config_.reference.empty()) {
      SLIM_ASSIGN(reference_, Subject::open(config_.reference, config_, registry_));
    }
    SLIM_ASSIGN(processor_, guarded(model_->model().adapter_id, [&] { return model_->model().adapter->processor(config_.model); }));
    nlohmann::ordered_json json = {{"model", config_.model}};
    describe(*model_, json);
    if (reference_) describe(*reference_, json["reference"] = {{"model", config_.reference}});
    for (const std::string& file : files) SLIM_TRY(evaluate_file(file, json));
    summarize(model_totals_, json);
    if (reference_) summarize(reference_totals_, json["reference"]);
    return Report{table(json), json.dump()};
  }

 private:
  struct Totals {
    Scores text, answers;
  };

  Status evaluate_file(const std::string& file, nlohmann::ordered_json& json) {
    SLIM_ASSIGN(const EvalSet set, EvalReader(*processor_, config_).read(file));
    SLIM_ASSIGN(const std::vector<Carry> batches, model_->run(set, progress_));
    std::vector<Carry> reference_batches;
    if (reference_) {
      SLIM_ASSIGN(reference_batches, reference_->run(set, progress_));
    }
    Scores scores, reference_scores;
    for (size_t i = 0; i < batches.size(); ++i) {
      SLIM_TRY(score_batch(set, i, batches[i], reference_ ? &reference_batches[i] : nullptr, scores, reference_scores));
    }
    if (set.answers && config_.generate) {
      SLIM_TRY(score_answers(set, *model_, scores, json["files"][set.name]));
      if (reference_) SLIM_TRY(score_answers(set, *reference_, reference_scores, json["reference"]["files"][set.name]));
    }
    add(set, scores, model_totals_, json["files"][set.name]);
    if (!set.left_out.empty()) {
      json["files"][set.name]["left_out"] = set.left_out;
      progress_.warn(set.name + ": " + std::to_string(set.left_out.size()) + " samples left out, the first: " + set.left_out.front());
    }
    if (reference_) add(set, reference_scores, reference_totals_, json["reference"]["files"][set.name]);
    return {};
  }

  /// Negative log-likelihood of the targets and, against a reference, KL(reference || model), a few rows of logits at a time.
  Status score_batch(const EvalSet& set, size_t batch, const Carry& carry, const Carry* reference, Scores& scores,
                     Scores& reference_scores) {
    constexpr int64_t kRowsAtOnce = 128;
    const size_t first = batch * config_.batch_size;
    const auto [rows, targets] = scored_rows(set, first, std::min(set.sequences.size(), first + config_.batch_size));
    for (int64_t begin = 0; begin < rows.size(0); begin += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, rows.size(0) - begin);
      const at::Tensor some = rows.narrow(0, begin, count), target = targets.narrow(0, begin, count).unsqueeze(1);
      SLIM_ASSIGN(const at::Tensor log_p, model_->log_probabilities(carry, some));
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

  Status score_answers(const EvalSet& set, Subject& subject, Scores& scores, nlohmann::ordered_json& json) {
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
  static void describe(const Subject& subject, nlohmann::ordered_json& json) {
    const WeightSource& weights = *subject.model().weights;
    double bits = 0, count = 0, all = 0;
    for (const BlockPlan& block : subject.model().plan.blocks) {
      for (const Layer& layer : block.layers) {
        const StoredLayer* stored = weights.stored(layer.name);
        if (weights.quantized() != (stored != nullptr)) continue;
        count += static_cast<double>(layer.out) * static_cast<double>(layer.in);
        if (!stored) bits += 8.0 * c10::elementSize(weights.dtype()) * static_cast<double>(layer.out) * static_cast<double>(layer.in);
        else for (const std::string& name : stored->tensors) bits += 8.0 * static_cast<double>(byte_size(weights.checkpoint().tensors().at(name)).value_or(0));
      }
    }
    for (const auto& [name, spec] : weights.logical()) {
      double elements = 1;
      for (const int64_t size : spec.shape) elements *= static_cast<double>(size);
      all += elements;
    }
    json["bytes_on_disk"] = weights.checkpoint().total_bytes();
    json["bits_per_weight"] = bits / std::max(1.0, count);
    json["bits_per_parameter"] = 8.0 * static_cast<double>(weights.checkpoint().total_bytes()) / std::max(1.0, all);
  }

  static std::string table(const nlohmann::ordered_json& json) {
    const std::pair<const char*, const char*> rows[] = {
        {"bytes_on_disk", "bytes on disk"}, {"bits_per_weight", "bits per linear weight"}, {"bits_per_parameter", "bits per parameter"},
        {"text_perplexity", "perplexity (text)"}, {"text_kl", "KL divergence (text)"}, {"answers_nll", "loss of answers"},
        {"answers_kl", "KL divergence (answers)"}, {"answers_exact", "answers exactly right"}};
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
      std::snprintf(line, sizeof line, "%-26s %16s %16s\n", label, with_reference ? cell(json["reference"], key).c_str() : "",
                    cell(json, key).c_str());
      text += line;
    }
    return text;
  }

  const EvalConfig& config_;
  PluginRegistry& registry_;
  Progress& progress_;
  std::unique_ptr<Subject> model_, reference_;
  std::unique_ptr<Processor> processor_;
  Totals model_totals_, reference_totals_;
};

}  // namespace

Progress::~Progress() = default;

Result<Report> evaluate(const EvalConfig& config, PluginRegistry& registry, Progress& progress) {
  return Evaluation(config, registry, progress).run();
}

}  // namespace slim
