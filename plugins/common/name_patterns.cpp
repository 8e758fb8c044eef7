#include "common/name_patterns.hpp"

#include <algorithm>
#include <map>
#include <regex>
#include <string_view>

namespace slim::formats {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (std::string_view(".^$|()[]{}*+?\\").find(c) != std::string_view::npos) result += '\\';
    result += c;
  }
  return result;
}

/// For one layer, or with `any_number` for the same layer of every block.
std::string pattern_of(const std::string& name, bool any_number) {
  size_t begin = std::string::npos;
  for (const char* word : {"layers.", "blocks."}) begin = std::min(begin, name.find(word));
  std::string pattern = begin == std::string::npos ? "" : ".*\\b";
  for (size_t i = begin == std::string::npos ? 0 : begin; i < name.size();) {
    if (any_number && is_digit(name[i]) && (i == 0 || name[i - 1] == '.')) {
      while (i < name.size() && is_digit(name[i])) ++i;
      pattern += "\\d+";
    } else {
      pattern += escaped(name.substr(i++, 1));
    }
  }
  return pattern + "$";
}

}  // namespace

bool matches_start(const std::string& pattern, const std::string& name) {
  return std::regex_search(name, std::regex(pattern), std::regex_constants::match_continuous);
}

std::vector<std::string> patterns_of(const std::vector<std::string>& names,
                                     const std::vector<std::string>& others) {
  const auto spares_others = [&](const std::string& pattern) {
    const std::regex regex(pattern);
    return std::none_of(others.begin(), others.end(), [&](const std::string& other) {
      return std::regex_search(other, regex, std::regex_constants::match_continuous);
    });
  };
  std::map<std::string, bool> usable;
  std::vector<std::string> patterns;
  for (const std::string& name : names) {
    const std::string any_block = pattern_of(name, true);
    if (const auto [it, inserted] = usable.emplace(any_block, false); inserted) {
      it->second = spares_others(any_block);
      if (it->second) patterns.push_back(any_block);
    }
    if (usable[any_block]) continue;
    const std::string one = pattern_of(name, false);
    patterns.push_back(spares_others(one) ? one : escaped(name) + "$");
  }
  return patterns;
}

}  // namespace slim::formats
