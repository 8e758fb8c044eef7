#pragma once
#include <memory>
#include <string>
#include <vector>

#include "commands/commands.h"
#include "commands/eval_set.h"
#include "model/model.h"

namespace slim {

/// A model under evaluation. Batches hold EvalConfig::batch_size sequences each, in the order of the set. `config` and `notes` must outlive
/// it.
class EvalSubject {
 public:
  static Result<std::unique_ptr<EvalSubject>> open(const std::string& folder, const EvalConfig& config,
                                                   PluginRegistry&, at::Device device, Notes& notes);

  const Model& model() const { return model_; }
  /// Hidden states of all sequences before the head: one carry a batch.
  Result<std::vector<Carry>> run(const EvalSet&, Progress&);
  /// [rows, vocabulary] fp32, on the device
  Result<at::Tensor> log_probabilities(const Carry&, const at::Tensor& rows);
  /// Greedy answers without the stop token, one token at a time for all batches together; a batch whose answers have all ended
  /// is not continued.
  Result<std::vector<std::vector<int64_t>>> answer(const EvalSet&, const std::vector<int64_t>& stop,
                                                   Progress&);

 private:
  struct AnswerBatch;

  EvalSubject(Model model, at::ScalarType dtype, const EvalConfig& config, at::Device device, Notes& notes);
  Result<std::vector<Carry>> begin(const std::vector<const Sample*>&);
  Result<std::vector<at::Tensor>> next_tokens(const std::vector<Carry>&);
  Status next_step(std::vector<Carry>&, const std::vector<at::Tensor>& tokens, std::vector<MemoryCache>&,
                   Progress&);
  std::vector<AnswerBatch> answer_batches(size_t questions) const;

  const EvalConfig& config_;
  Model model_;
  ForwardPass pass_;
};

}  // namespace slim
