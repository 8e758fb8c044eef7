#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace slim::model {

/// Unicode as the Hugging Face tokenizers library knows it, whatever the versions of utf8proc and PCRE2 are. The library
/// normalizes by Unicode 9.0 (later characters have no decomposition and combining class 0) and matches regular expressions by
/// the categories of Unicode 16.0. All functions are pure and may be called from any thread.

/// One code point at `offset` of valid UTF-8, `offset` moved behind it.
char32_t next_code_point(std::string_view utf8, size_t& offset);
void append_utf8(char32_t code_point, std::string& out);

bool is_valid_utf8(std::string_view text);
/// Each maximal ill-formed part becomes one U+FFFD, as Python's errors="replace" does and Rust's lossy conversion.
std::string replace_invalid_utf8(std::string_view text);

/// Canonical composition (NFC) of valid UTF-8.
std::string nfc(std::string_view text);

/// Valid UTF-8 of the same length, for matching only: characters whose category is another in PCRE2's Unicode than in the
/// library's stand as an old character of the right category and as many bytes. Returns false, leaving `out` alone, when
/// there is none, so that `text` itself can be matched.
bool regex_stand_in(std::string_view text, std::string& out);

bool is_white_space(char32_t c);  ///< property White_Space
bool is_word(char32_t c);         ///< \w: letters, marks, decimal digits, letter numbers, connectors, joiners

namespace unicode_tables {
struct CategoryRange {
  char32_t first, last;
  uint8_t category;  ///< index into kCategories
};
struct Range {
  char32_t first, last;
};
extern const char* const kCategories;  ///< two letters each
extern const CategoryRange kCategoryChanges[];
extern const size_t kCategoryChangeCount;
extern const Range kUnnormalized[];
extern const size_t kUnnormalizedCount;
}  // namespace unicode_tables

}  // namespace slim::model
