#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace slim::model {

/// A token that is found in the text before the model sees it.
struct AddedToken {
  std::string content;
  int64_t id = 0;
  bool single_word = false;  ///< only between characters that are not part of words
  bool lstrip = false;       ///< takes the white space before it along
  bool rstrip = false;       ///< and the white space behind it
  bool normalized = false;   ///< looked for in the normalized text
  bool special = false;
};

/// A piece of a text: an added token, or text between them (id < 0).
struct TextPiece {
  std::string_view text;
  int64_t id;
};

/// Finds added tokens: leftmost, and the longest of those that start there. A trie of bytes. Immutable after the last add().
class AddedTokenFinder {
 public:
  /// The content may not be empty.
  void add(const AddedToken& token);
  /// Appends all of `text`, no piece empty, in order. Views into `text`.
  void split(std::string_view text, std::vector<TextPiece>& pieces) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, uint32_t>> children;
    int32_t token = -1;
  };
  /// Index into tokens_ of the longest match at text[at], its size in `size`; -1 if there is none.
  int32_t match(std::string_view text, size_t at, size_t& size) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{1};
  std::array<bool, 256> starts_{};
};

}  // namespace slim::model
