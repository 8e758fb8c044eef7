#include "commands/eval_set.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "data/dataset.h"
#include "plugin/guard.h"

namespace slim {
namespace {

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
      const Status status = guarded(
          document.origin, [&] { return chat ? add_question(document, set) : add_text(document, set); });
      if (status.code() == Code::kUnsupported)
        set.left_out.push_back(status.message());
      else if (!status.ok())
        return status;
    }
    return set;
  }

 private:
  Status add_text(const Document& document, EvalSet& set) const {
    SLIM_ASSIGN(Sample sample, processor_.encode(document, {}));
    auto ids = token_ids(sample.tensors.at("input_ids"));
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

}  // namespace

std::vector<int64_t> token_ids(const at::Tensor& ids) {
  const at::Tensor flat = ids.to(at::kLong).contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

Result<std::vector<std::string>> evaluation_files(const std::string& path) {
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
  if (files.empty())
    return Status(Code::kNotFound, path + ": no .jsonl, .txt or .parquet file to evaluate on");
  std::sort(files.begin(), files.end());
  return files;
}

Result<EvalSet> read_eval_set(const std::string& file, const Processor& processor, const EvalConfig& config) {
  return EvalReader(processor, config).read(file);
}

}  // namespace slim
