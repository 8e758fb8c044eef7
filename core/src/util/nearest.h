#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "slim/export.hpp"

namespace slim {

/// The candidate of least edit distance, or "" if none is near enough to be a typo (more than half of the letters differ).
SLIM_API std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace slim
