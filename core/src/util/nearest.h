#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "slim/export.hpp"

namespace slim {

/// The candidate of least edit distance, or "" if none is near enough to be a typo (more than half of the letters differ).
/// Letter case and the difference between '-' and '_' do not count; of equals the first wins.
SLIM_API std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

/// The end of a message about an unknown name: "; did you mean 'awq'?", or "" without a near candidate.
SLIM_API std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

/// "a, b, c" of any range of strings.
SLIM_API std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");

}  // namespace slim
