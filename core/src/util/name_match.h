#pragma once
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "slim/status.hpp"

namespace slim {

/// One pattern for module names: an exact name, a glob with * and ?, or "re:" and a regular expression that must match from the
/// first character on (as compressed-tensors and vLLM read their ignore lists).
class SLIM_API NamePattern {
 public:
  static Result<NamePattern> parse(const std::string& text);
  bool matches(const std::string& name) const {
    return std::regex_search(name, regex_, std::regex_constants::match_continuous);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::regex regex_;
};

SLIM_API Result<std::vector<NamePattern>> parse_patterns(const std::vector<std::string>& texts);

}  // namespace slim
