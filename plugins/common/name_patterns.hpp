#pragma once
#include <string>
#include <vector>

namespace slim::formats {

/// Regular expressions (of C++ and Python alike), to be matched from a name's start, that cover all of `names` and none
/// of `others`. One expression serves the same layer of every block (and expert) where it can. What precedes "layers."
/// or "blocks." is left open: engines put other prefixes there than the checkpoint.
std::vector<std::string> patterns_of(const std::vector<std::string>& names,
                                     const std::vector<std::string>& others);
/// True if the expression matches from the start of `name`; it must be valid.
bool matches_start(const std::string& pattern, const std::string& name);

}  // namespace slim::formats
