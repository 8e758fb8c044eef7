#pragma once
#include <string>
#include <vector>

#include "model/model.h"

namespace slim {

/// What engines would refuse, or take otherwise, in a checkpoint whose plan and tensors fit: no or foreign architectures, a quantization_config
/// that its tensors contradict. One line each.
Result<std::vector<std::string>> config_problems(const Model&);
/// A tokenizer or processor that is missing or damaged. One line each; kinds that slim cannot read are none.
std::vector<std::string> processor_problems(const Model&);
/// A tensor outside of quantized layers, read in pieces: a line if it holds NaN or Inf, else empty. Tensors that are not in float: empty.
Result<std::string> float_problem(const Checkpoint&, const std::string& name);

}  // namespace slim
