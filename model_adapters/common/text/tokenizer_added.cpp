#include "common/text/tokenizer_added.hpp"

#include <algorithm>

#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

char32_t last_code_point(std::string_view text, size_t& at) {
  while (at > 0 && (static_cast<uint8_t>(text[--at]) & 0xC0) == 0x80) {
  }
  size_t i = at;
  return next_code_point(text, i);
}

bool word_before(std::string_view text, size_t end) { return end > 0 && is_word(last_code_point(text, end)); }
bool word_after(std::string_view text, size_t begin) {
  return begin < text.size() && is_word(next_code_point(text, begin));
}

size_t skip_space_back(std::string_view text, size_t end, size_t floor) {
  for (size_t at = end; end > floor; end = at)
    if (!is_white_space(last_code_point(text, at))) break;
  return std::max(end, floor);
}

size_t skip_space(std::string_view text, size_t begin) {
  for (size_t at = begin; begin < text.size(); begin = at)
    if (!is_white_space(next_code_point(text, at))) break;
  return begin;
}

}  // namespace

void AddedTokenFinder::add(const AddedToken& token) {
  uint32_t node = 0;
  for (char c : token.content) {
    auto byte = static_cast<uint8_t>(c);
    auto& children = nodes_[node].children;
    auto it = std::find_if(children.begin(), children.end(),
                           [&](const auto& child) { return child.first == byte; });
    if (it == children.end()) {
      children.emplace_back(byte, static_cast<uint32_t>(nodes_.size()));
      node = children.back().second;
      nodes_.emplace_back();
    } else {
      node = it->second;
    }
  }
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  starts_[static_cast<uint8_t>(token.content.front())] = true;
}

int32_t AddedTokenFinder::match(std::string_view text, size_t at, size_t& size) const {
  int32_t found = -1;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto& children = nodes_[node].children;
    auto byte = static_cast<uint8_t>(text[i]);
    auto it = std::find_if(children.begin(), children.end(),
                           [&](const auto& child) { return child.first == byte; });
    if (it == children.end()) break;
    node = it->second;
    if (nodes_[node].token >= 0) found = nodes_[node].token, size = i + 1 - at;
  }
  return found;
}

void AddedTokenFinder::split(std::string_view text, std::vector<TextPiece>& pieces) const {
  size_t done = 0;  // everything before is in `pieces`
  for (size_t i = 0, size = 0; i < text.size();) {
    int32_t index = starts_[static_cast<uint8_t>(text[i])] ? match(text, i, size) : -1;
    if (index < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = i, end = i + size;
    i = end;  // matches do not overlap, also those that are then refused
    if (token.single_word && (word_before(text, begin) || word_after(text, end))) continue;
    if (begin < done) continue;  // inside the white space that the token before it took
    if (token.lstrip) begin = skip_space_back(text, begin, done);
    if (token.rstrip) end = skip_space(text, end);
    if (begin > done) pieces.push_back({text.substr(done, begin - done), -1});
    pieces.push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({text.substr(done), -1});
}

}  // namespace slim::model
