#include "common/chat/jinja_text.hpp"

#include <cstdio>

#include "common/text/unicode.hpp"

namespace slim::model::jinja {
namespace {

/// str.isspace: White_Space and four separators of ASCII.
bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

bool is_one_of(std::string_view character, const std::optional<std::string>& set) {
  size_t at = 0;
  if (!set) return is_python_space(next_code_point(character, at));
  return set->find(character) != std::string::npos;
}

}  // namespace

std::vector<std::string> characters(std::string_view text) {
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size();) {
    size_t begin = i;
    next_code_point(text, i);
    out.emplace_back(text.substr(begin, i - begin));
  }
  return out;
}

std::string stripped(std::string_view text, const std::optional<std::string>& set, bool left, bool right) {
  while (left && !text.empty()) {
    size_t size = 0;
    next_code_point(text, size);
    if (!is_one_of(text.substr(0, size), set)) break;
    text.remove_prefix(size);
  }
  while (right && !text.empty()) {
    size_t begin = text.size() - 1;
    while ((static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!is_one_of(text.substr(begin), set)) break;
    text = text.substr(0, begin);
  }
  return std::string(text);
}

std::vector<std::string> split_text(std::string_view text, const std::optional<std::string>& separator,
                                    int64_t limit) {
  std::vector<std::string> out;
  auto more = [&] { return limit < 0 || static_cast<int64_t>(out.size()) < limit; };
  if (separator) {
    size_t at = 0;
    for (size_t next; more() && (next = text.find(*separator, at)) != std::string_view::npos;
         at = next + separator->size())
      out.emplace_back(text.substr(at, next - at));
    out.emplace_back(text.substr(at));
    return out;
  }
  std::string rest = stripped(text, std::nullopt, true, false);
  while (!rest.empty() && more()) {
    size_t end = 0, next = 0;
    while (next < rest.size() && !is_python_space(next_code_point(rest, next))) end = next;
    out.push_back(rest.substr(0, end));
    rest = stripped(std::string_view(rest).substr(end), std::nullopt, true, false);
  }
  if (!rest.empty()) out.push_back(std::move(rest));
  return out;
}

void append_json_string(std::string_view text, std::string& out) {
  out += '"';
  for (char c : text) {
    static constexpr std::string_view kSpecial = "\"\\\n\r\t\b\f", kEscapes = "\"\\nrtbf";
    if (size_t k = kSpecial.find(c); k != std::string_view::npos) {
      out += '\\', out += kEscapes[k];
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace slim::model::jinja
