#pragma once
#include <string>
#include <vector>

#include "model/model.h"

namespace slim {

/// What keeps an engine from loading or running a compressed checkpoint on `tensor_parallel` devices: layers that it merges but that
/// have different schemes, groups that its shards cut, sizes that its kernels do not take. What is the same of many layers is one line, with
/// the first of them and their count. Empty: nothing that is known.
/// kInvalidArgument: an engine that slim knows no rules of.
SLIM_API Result<std::vector<std::string>> engine_problems(const Model&, const std::string& engine,
                                                          int64_t tensor_parallel);

}  // namespace slim
