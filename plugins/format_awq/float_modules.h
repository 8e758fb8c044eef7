#pragma once
#include <string>
#include <vector>

#include "slim/format.hpp"

namespace slim::awq_format {

/// Entries of "modules_to_not_convert" that cover every layer left in float and no quantized one, read in either way:
/// AutoAWQ and vLLM look for them as substrings of module names, transformers matches them as regular expressions from
/// the start (or as the end) of a name. model.plan must be set.
std::vector<std::string> float_modules(const OutputModel& model);

}  // namespace slim::awq_format
