#include "util/name_match.h"

namespace slim {
namespace {

std::string regex_of_glob(std::string_view glob) {
  std::string regex;
  for (const char c : glob) {
    if (c == '*')
      regex += ".*";
    else if (c == '?')
      regex += '.';
    else if (std::string_view("\\^$.|+()[]{}").find(c) != std::string_view::npos)
      (regex += '\\') += c;
    else
      regex += c;
  }
  return regex + "$";
}

}  // namespace

Result<NamePattern> NamePattern::parse(const std::string& text) {
  NamePattern pattern;
  pattern.text_ = text;
  const bool is_regex = text.starts_with("re:");
  try {
    pattern.regex_ = std::regex(is_regex ? text.substr(3) : regex_of_glob(text),
                                std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error& error) {
    return Status(Code::kInvalidArgument,
                  "pattern '" + text + "' is no valid regular expression: " + error.what());
  }
  return pattern;
}

Result<std::vector<NamePattern>> parse_patterns(const std::vector<std::string>& texts) {
  std::vector<NamePattern> patterns;
  for (const std::string& text : texts) {
    SLIM_ASSIGN(NamePattern pattern, NamePattern::parse(text));
    patterns.push_back(std::move(pattern));
  }
  return patterns;
}

}  // namespace slim
