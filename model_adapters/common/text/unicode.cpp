#include "common/text/unicode.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

namespace slim::model {
namespace {

/// Bytes of the well-formed sequence at text[i], or 0; then `bad` is the length of the maximal ill-formed part.
size_t sequence_length(std::string_view text, size_t i, size_t& bad) {
  auto byte = [&](size_t k) { return k < text.size() ? static_cast<uint8_t>(text[k]) : 0u; };
  unsigned lead = byte(i), low = 0x80, high = 0xBF;
  if (lead < 0x80) return 1;
  size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                  : (lead & 0xF0) == 0xE0        ? 3
                  : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                 : 0;
  if (lead == 0xE0) low = 0xA0;   // no overlong forms,
  if (lead == 0xED) high = 0x9F;  // no surrogates,
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;  // nothing above U+10FFFF
  bad = 1;
  for (size_t k = 1; k < length; ++k, low = 0x80, high = 0xBF, ++bad)
    if (byte(i + k) < low || byte(i + k) > high) return 0;
  return length;
}

template <class RangeType>
const RangeType* find_range(const RangeType* first, size_t count, char32_t c) {
  const RangeType* it =
      std::partition_point(first, first + count, [c](const RangeType& r) { return r.last < c; });
  return it != first + count && it->first <= c ? it : nullptr;
}

/// Surely a starter that NFC leaves alone and that composes with no character before it (checked by a test).
bool is_inert(char32_t c) {
  return c < 0x300 || (c >= 0x400 && c < 0x483) || (c >= 0x2010 && c < 0x20D0) ||
         (c >= 0x3000 && c < 0x302A) || (c >= 0x3040 && c < 0x3099) || (c >= 0x30A0 && c < 0xA000) ||
         (c >= 0xAC00 && c < 0xD7A4) || (c >= 0xFF00 && c < 0xFFF0);
}

bool is_unnormalized(char32_t c) {
  using namespace unicode_tables;
  return c >= kUnnormalized[0].first && (find_range(kUnnormalized, kUnnormalizedCount, c) != nullptr ||
                                         find_range(kCategoryChanges, kCategoryChangeCount, c) != nullptr);
}

bool is_mark(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class != 0; }

/// Each run of combining marks in the order of their classes. utf8proc's own sort takes the square of a run's length.
void sort_marks(std::vector<utf8proc_int32_t>& text) {
  const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
    return utf8proc_get_property(a)->combining_class < utf8proc_get_property(b)->combining_class;
  };
  for (auto begin = text.begin(); begin != text.end();) {
    begin = std::find_if(begin, text.end(), is_mark);
    const auto end = std::find_if_not(begin, text.end(), is_mark);
    std::stable_sort(begin, end, by_class);
    begin = end;
  }
}

/// Decomposition, order, composition: UAX #15.
void append_nfc(std::string_view text, std::string& out) {
  constexpr size_t kLongest = 8;  // no character decomposes into more by canonical mappings
  std::vector<utf8proc_int32_t> decomposed;
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<utf8proc_int32_t>(next_code_point(text, i));
    std::array<utf8proc_int32_t, kLongest> parts{};
    int boundary = 0;
    const auto count = utf8proc_decompose_char(
        c, parts.data(), kLongest, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE),
        &boundary);
    decomposed.insert(decomposed.end(), parts.begin(),
                      parts.begin() + std::clamp<utf8proc_ssize_t>(count, 0, kLongest));
  }
  sort_marks(decomposed);
  const auto length =
      utf8proc_normalize_utf32(decomposed.data(), static_cast<utf8proc_ssize_t>(decomposed.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  decomposed.resize(static_cast<size_t>(std::max<utf8proc_ssize_t>(length, 0)));
  for (const utf8proc_int32_t c : decomposed) append_utf8(static_cast<char32_t>(c), out);
}

/// A character of `category` that Unicode has had for long, of `bytes` UTF-8 bytes.
char32_t representative(std::string_view category, size_t bytes) {
  struct Entry {
    std::string_view category;
    char32_t three, four;
  };
  static constexpr Entry kEntries[] = {
      {"Lu", 0x1E00, 0x10400}, {"Ll", 0x1E01, 0x10428}, {"Lm", 0x1D2C, 0x16F93}, {"Lo", 0x4E00, 0x20000},
      {"Mn", 0x20D0, 0xE0100}, {"Mc", 0x0903, 0x11000}, {"Nd", 0x0966, 0x104A0}, {"Nl", 0x2160, 0x10140},
      {"No", 0x2460, 0x10107}, {"Pc", 0x203F, 0},       {"Pd", 0x2010, 0x10EAD}, {"Po", 0x2016, 0x10100},
      {"Sm", 0x2200, 0x1D6C1}, {"Sc", 0x20AC, 0},       {"So", 0x2603, 0x1F600}, {"Cf", 0x200B, 0xE0001},
  };
  for (const Entry& e : kEntries)
    if (e.category == category) return bytes == 3 ? e.three : e.four;
  return bytes == 3 ? 0xFFFF : 0x1FFFF;  // noncharacters: unassigned for ever
}

}  // namespace

char32_t next_code_point(std::string_view s, size_t& i) {
  auto byte = [&](size_t k) { return static_cast<char32_t>(static_cast<uint8_t>(s[k])); };
  char32_t lead = byte(i);
  if (lead < 0x80) return ++i, lead;
  size_t n = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t c = lead & (0x7Fu >> n);
  for (size_t k = 1; k < n; ++k) c = c << 6 | (byte(i + k) & 0x3F);
  i += n;
  return c;
}

void append_utf8(char32_t c, std::string& out) {
  auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) return put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  if (c < 0x10000) return put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
}

bool is_valid_utf8(std::string_view text) {
  size_t bad = 0;
  for (size_t i = 0, n = 0; i < text.size(); i += n)
    if ((n = sequence_length(text, i, bad)) == 0) return false;
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0, bad = 0; i < text.size();) {
    size_t n = sequence_length(text, i, bad);
    out.append(n > 0 ? text.substr(i, n) : std::string_view("\xEF\xBF\xBD"));
    i += n > 0 ? n : bad;
  }
  return out;
}

std::string nfc(std::string_view text) {
  bool inert = true;
  for (size_t i = 0; inert && i < text.size();) inert = is_inert(next_code_point(text, i));
  if (inert) return std::string(text);
  std::string out;
  size_t start = 0;
  for (size_t i = 0; i < text.size();) {
    size_t at = i;
    if (!is_unnormalized(next_code_point(text, i))) continue;
    append_nfc(text.substr(start, at - start), out);
    out.append(text.substr(at, i - at));
    start = i;
  }
  append_nfc(text.substr(start), out);
  return out;
}

bool regex_stand_in(std::string_view text, std::string& out) {
  using namespace unicode_tables;
  bool changed = false;
  for (size_t i = 0; i < text.size();) {
    size_t at = i;
    char32_t c = next_code_point(text, i), stand_in = 0;
    if (c < kCategoryChanges[0].first) continue;
    if (c == 0x180E) {
      stand_in = representative("Cf", 3);  // PCRE2 takes it for a space, Oniguruma does not
    } else if (const CategoryRange* r = find_range(kCategoryChanges, kCategoryChangeCount, c)) {
      stand_in = representative(std::string_view(kCategories + 2 * r->category, 2), i - at);
    } else {
      continue;
    }
    if (!changed) out = text;
    changed = true;
    std::string bytes;
    append_utf8(stand_in, bytes);
    out.replace(at, i - at, bytes);
  }
  return changed;
}

bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word(char32_t c) {
  using namespace unicode_tables;
  const CategoryRange* changed = find_range(kCategoryChanges, kCategoryChangeCount, c);
  std::string_view category = changed != nullptr ? std::string_view(kCategories + 2 * changed->category, 2)
                                                 : utf8proc_category_string(static_cast<utf8proc_int32_t>(c));
  if (category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" || category == "Pc")
    return true;
  // Join_Control, and the symbols that are alphabetic: circled and squared Latin letters.
  return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

}  // namespace slim::model
