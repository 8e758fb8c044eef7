#include "common/text/tokenizer_regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>

#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

template <auto F>
struct Freer {
  template <class T>
  void operator()(T* p) const {
    F(p);
  }
};
using CompileContext = std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>>;

std::string message_of(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

Status unsupported(const std::string& pattern, size_t at, const std::string& what) {
  return Status(Code::kUnsupported, "pattern '" + pattern + "': " + what + " at offset " +
                                        std::to_string(at) + " is not supported");
}

/// After a backslash at pattern[i]: moves i to its last character. Only escapes with one meaning in both engines.
Status check_escape(const std::string& pattern, size_t& i) {
  size_t at = i++;
  char c = i < pattern.size() ? pattern[i] : '\0';
  if (std::string_view("rntsSdD").find(c) != std::string_view::npos) return {};
  if (std::ispunct(static_cast<unsigned char>(c))) return {};
  if (c != 'p' && c != 'P') return unsupported(pattern, at, std::string("escape \\") + c);
  size_t close = pattern.find('}', i);
  std::string name =
      close == std::string::npos || pattern[i + 1] != '{' ? "" : pattern.substr(i + 2, close - i - 2);
  if (name.starts_with('^')) name.erase(0, 1);
  static const std::string kGeneral = " L N M P S Z C ";
  bool known = name.size() == 1 && kGeneral.find(" " + name + " ") != std::string::npos;
  for (const char* p = unicode_tables::kCategories; *p != '\0'; p += 2)
    known |= name == std::string_view(p, 2);
  if (!known)
    return unsupported(pattern, at, "property " + pattern.substr(at, 8) + " (general categories are)");
  i = close;
  return {};
}

/// [...] from pattern[i] == '[': moves i to the closing bracket. Oniguruma has nested classes and intersections, PCRE2 not.
Status check_class(const std::string& pattern, size_t& i) {
  size_t open = i++;
  if (i < pattern.size() && pattern[i] == '^') ++i;
  for (bool first = true; i < pattern.size(); ++i, first = false) {
    if (pattern[i] == ']' && !first) return {};
    if (pattern[i] == ']' || pattern[i] == '[')
      return unsupported(pattern, i, "a bracket inside a character class");
    if (pattern.compare(i, 2, "&&") == 0)
      return unsupported(pattern, i, "an intersection of character classes");
    if (pattern[i] == '\\') SLIM_TRY(check_escape(pattern, i));
  }
  return unsupported(pattern, open, "an unclosed character class");
}

Status check_syntax(const std::string& pattern) {
  bool ignore_case = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    char c = pattern[i];
    if (c == '\\') {
      SLIM_TRY(check_escape(pattern, i));
    } else if (c == '[') {
      SLIM_TRY(check_class(pattern, i));
    } else if (c == '^' || c == '$') {
      return unsupported(pattern, i, "a line anchor");
    } else if (c == '}' && pattern.compare(i, 2, "}+") == 0) {
      return unsupported(pattern, i, "a quantifier after a repetition count");
    } else if (c == '(' && pattern.compare(i, 2, "(?") == 0) {
      static constexpr std::string_view kGroups[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"};
      const auto* group = std::find_if(std::begin(kGroups), std::end(kGroups), [&](std::string_view g) {
        return pattern.compare(i, g.size(), g) == 0;
      });
      if (group == std::end(kGroups)) return unsupported(pattern, i, "a group " + pattern.substr(i, 4));
      ignore_case |= *group == "(?i:";
      i += group->size() - 1;
    } else if (c == '(' && pattern.compare(i, 2, "(*") == 0) {
      return unsupported(pattern, i, "a control verb");
    }
  }
  // Case folding of Oniguruma lets these stand for one character (ß, ﬁ, ...).
  for (const char* pair : {"ss", "st", "ff", "fi", "fl"})
    if (ignore_case && pattern.find(pair) != std::string::npos)
      return unsupported(pattern, pattern.find(pair),
                         std::string("'") + pair + "' in a case-insensitive pattern");
  return {};
}

}  // namespace

struct TokenizerRegex::Code {
  std::unique_ptr<pcre2_code, Freer<pcre2_code_free>> code;
  bool jit = false;
};

Result<TokenizerRegex> TokenizerRegex::compile(const std::string& pattern) {
  if (!is_valid_utf8(pattern)) return Status(slim::Code::kCorrupt, "pattern is not valid UTF-8");
  SLIM_TRY(check_syntax(pattern));
  CompileContext context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE at = 0;
  auto code = std::make_shared<Code>();
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP, &error, &at, context.get()));
  if (code->code == nullptr)
    return Status(slim::Code::kCorrupt,
                  "pattern '" + pattern + "': " + message_of(error) + " at offset " + std::to_string(at));
  uint32_t empty = 0;
  pcre2_pattern_info(code->code.get(), PCRE2_INFO_MATCHEMPTY, &empty);
  if (empty != 0) return Status(slim::Code::kUnsupported, "pattern '" + pattern + "' matches the empty text");
  code->jit = pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE) == 0;
  TokenizerRegex regex;
  regex.code_ = std::move(code);
  return regex;
}

Status TokenizerRegex::split(std::string_view text, std::vector<RegexPiece>& pieces) const {
  std::string stand_in;
  if (regex_stand_in(text, stand_in)) text = stand_in;
  MatchData data(pcre2_match_data_create_from_pattern(code_->code.get(), nullptr));
  MatchContext context(pcre2_match_context_create(nullptr));
  JitStack stack;
  size_t last = 0;
  while (last < text.size()) {
    // No JIT fast path: pcre2_match() itself dispatches to the compiled code.
    int rc = pcre2_match(code_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), last,
                         PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && stack == nullptr) {
      stack.reset(pcre2_jit_stack_create(64 * 1024, 64 * 1024 * 1024, nullptr));
      pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
      continue;
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0)
      return Status(slim::Code::kUnsupported, "the pre-tokenizer's pattern failed: " + message_of(rc));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    if (range[0] > last) pieces.push_back({last, range[0], false});
    pieces.push_back({range[0], range[1], true});
    last = range[1];
  }
  if (last < text.size()) pieces.push_back({last, text.size(), false});
  return {};
}

}  // namespace slim::model
