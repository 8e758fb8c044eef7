#pragma once
#include <string>
#include <vector>

#include "commands/commands.h"
#include "slim/adapter.hpp"

namespace slim {

/// One sequence to score: rows of its hidden states whose next token is known.
struct Scored {
  Sample sample;
  int64_t first_row = 0;  ///< the row that predicts targets[0]
  std::vector<int64_t> targets;
};
/// A question to be answered.
struct Question {
  Sample prompt;
  std::string answer, origin;
};
/// One evaluation file.
struct EvalSet {
  std::string name;
  bool answers = false;  ///< questions with answers; else plain text
  std::vector<Scored> sequences;
  std::vector<Question> questions;  ///< as many as sequences, if `answers`
  std::vector<std::string>
      left_out;  ///< samples that the model cannot take (images for a text model): "eval.jsonl:3: why"
};

/// A file itself; of a folder the data files named eval*, or all when there are none. In the order of names.
Result<std::vector<std::string>> evaluation_files(const std::string& path);
/// Reads and encodes one file. No sequence if the model can take none of its samples.
Result<EvalSet> read_eval_set(const std::string& file, const Processor&, const EvalConfig&);
/// Token ids as numbers.
std::vector<int64_t> token_ids(const at::Tensor&);

}  // namespace slim
