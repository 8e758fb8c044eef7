#pragma once
#include <string>
#include <vector>

#include "model/model.h"

namespace slim {

/// No architectures in config.json, or those of another model_type. One line each.
Result<std::vector<std::string>> architecture_problems(const Model&);
/// A tokenizer or processor that is missing or damaged. One line each; kinds that slim cannot read are none.
std::vector<std::string> processor_problems(const Model&);
/// A tensor outside of quantized layers, read in pieces: a line if it holds NaN or Inf, else empty. Tensors that are not in float: empty.
Result<std::string> float_problem(const Checkpoint&, const std::string& name);

}  // namespace slim
