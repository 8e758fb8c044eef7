#include "common/chat/jinja_text.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>

#include "common/text/unicode.hpp"

namespace slim::model::jinja {
namespace {

/// str.isspace: White_Space and four separators of ASCII.
bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

}  // namespace

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

size_t find_text(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const void* found = ::memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
}

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
  std::set<char32_t> wanted;
  for (size_t i = 0; set && i < set->size();) wanted.insert(next_code_point(*set, i));
  const auto is_one = [&](std::string_view character) {
    size_t at = 0;
    const char32_t c = next_code_point(character, at);
    return set ? wanted.contains(c) : is_python_space(c);
  };
  while (left && !text.empty()) {
    size_t size = 0;
    next_code_point(text, size);
    if (!is_one(text.substr(0, size))) break;
    text.remove_prefix(size);
  }
  while (right && !text.empty()) {
    size_t begin = text.size() - 1;
    while ((static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!is_one(text.substr(begin))) break;
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
    for (size_t next; more() && (next = find_text(text, *separator, at)) != std::string_view::npos;
         at = next + separator->size())
      out.emplace_back(text.substr(at, next - at));
    out.emplace_back(text.substr(at));
    return out;
  }
  const auto skip_space = [&](size_t at) {
    for (size_t next = at; next < text.size() && is_python_space(next_code_point(text, next)); at = next) {
    }
    return at;
  };
  size_t at = skip_space(0);
  while (at < text.size() && more()) {
    size_t end = at;
    for (size_t next = at; next < text.size() && !is_python_space(next_code_point(text, next));) end = next;
    out.emplace_back(text.substr(at, end - at));
    at = skip_space(end);
  }
  if (at < text.size()) out.emplace_back(text.substr(at));
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
