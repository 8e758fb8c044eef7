#pragma once
#include <string_view>

#include "data/media.h"
#include "slim/adapter.hpp"

namespace slim {

/// One JSON object of a data set as a Document (without its origin). The accepted shapes stand at
/// read_dataset. Nesting is limited, so that hostile input cannot exhaust the stack. Errors say what was
/// found and expected, without file and line.
Result<Document> parse_record(std::string_view json, const MediaRoot&);

}  // namespace slim
