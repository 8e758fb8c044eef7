#include <cctype>

#include "common/chat/jinja_syntax.hpp"
#include "common/text/unicode.hpp"

namespace slim::model::jinja {
namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool is_name(char c) { return c == '_' || std::isalnum(static_cast<unsigned char>(c)) != 0; }

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  Result<std::vector<Token>> run() {
    while (at_ < source_.size() && status_.ok()) step();
    SLIM_TRY(status_);
    push(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  /// A text, then the tag behind it.
  void step() {
    size_t open = at_;
    while ((open = source_.find('{', open)) != std::string::npos && !is_open(open)) ++open;
    if (open == std::string::npos) return text_up_to(source_.size(), source_.size());
    char kind = source_[open + 1], control = open + 2 < source_.size() ? source_[open + 2] : '\0';
    size_t end = open;
    if (control == '-') {
      while (end > at_ && is_space(source_[end - 1])) --end;
    } else if (control != '+' && kind != '{') {
      size_t line = end;  // lstrip_blocks: a tag that starts its line takes the indentation along
      while (line > at_ && source_[line - 1] != '\n' && is_space(source_[line - 1])) --line;
      if (line > at_ ? source_[line - 1] == '\n' : line_start_) end = line;
    }
    text_up_to(end, open);
    at_ = open + 2 + (control == '-' || control == '+' ? 1 : 0);
    if (kind == '#') return comment();
    push(kind == '%' ? Token::Kind::kBlockBegin : Token::Kind::kPrintBegin, "");
    inside(kind == '%' ? '%' : '}');
  }

  bool is_open(size_t i) const {
    return i + 1 < source_.size() && std::string_view("{%#").find(source_[i + 1]) != std::string_view::npos;
  }

  void text_up_to(size_t end, size_t next) {
    if (end > at_) push(Token::Kind::kText, source_.substr(at_, end - at_));
    move_to(next);
  }

  void comment() {
    size_t close = source_.find("#}", at_);
    if (close == std::string::npos) return fail("an unclosed comment");
    move_to(close + 2);
    after_tag(source_[close - 1], true);
  }

  /// What a closed tag takes of the text behind it.
  void after_tag(char control, bool trim_newline) {
    size_t end = at_;
    if (control == '-') {
      while (end < source_.size() && is_space(source_[end])) ++end;
    } else if (control != '+' && trim_newline && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    line_start_ = end > at_ && source_[end - 1] == '\n';
    move_to(end);
  }

  void inside(char closer) {
    int brackets = 0;
    while (status_.ok()) {
      while (at_ < source_.size() && is_space(source_[at_])) move_to(at_ + 1);
      if (at_ >= source_.size()) return fail("an unclosed tag");
      char c = source_[at_];
      size_t mark = at_ + (c == '-' || c == '+' ? 1 : 0);
      if (brackets == 0 && mark + 1 < source_.size() && source_[mark] == closer && source_[mark + 1] == '}') {
        push(closer == '%' ? Token::Kind::kBlockEnd : Token::Kind::kPrintEnd, "");
        move_to(mark + 2);
        return after_tag(c, closer == '%');
      }
      if (c == '(' || c == '[' || c == '{') ++brackets;
      if (c == ')' || c == ']' || c == '}') --brackets;
      c == '\'' || c == '"' ? string(c) : word();
    }
  }

  void word() {
    size_t end = at_;
    while (end < source_.size() && is_name(source_[end])) ++end;
    if (end > at_) {
      bool digit = std::isdigit(static_cast<unsigned char>(source_[at_])) != 0;
      std::string text = source_.substr(at_, end - at_);
      bool fraction = digit && end + 1 < source_.size() && source_[end] == '.' && is_name(source_[end + 1]);
      if (fraction || (digit && text.find_first_not_of("0123456789") != std::string::npos) ||
          (digit && text.size() > 18))
        return fail("number " + text + ": only decimal integers are supported");
      push(digit ? Token::Kind::kInt : Token::Kind::kName, std::move(text));
      return move_to(end);
    }
    for (std::string_view op : {"==", "!=", "<=", ">=", "//", "**"})
      if (source_.compare(at_, 2, op) == 0)
        return push(Token::Kind::kOperator, std::string(op)), move_to(at_ + 2);
    if (std::string_view("+-*/%~<>=.,:|()[]{}").find(source_[at_]) == std::string_view::npos)
      return fail(std::string("unexpected character '") + source_[at_] + "'");
    push(Token::Kind::kOperator, std::string(1, source_[at_]));
    move_to(at_ + 1);
  }

  void string(char quote) {
    std::string out;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\') {
        out += source_[i];
      } else if (!escape(i, out)) {
        return fail("an escape in a string that is not known");
      }
    }
    if (i >= source_.size()) return fail("an unclosed string");
    push(Token::Kind::kString, std::move(out));
    move_to(i + 1);
  }

  /// The escapes of Python's strings; i moves from the backslash to the last character.
  bool escape(size_t& i, std::string& out) const {
    if (++i >= source_.size()) return false;
    static constexpr std::string_view kNames = "ntr\\'\"0abfv", kValues("\n\t\r\\'\"\0\a\b\f\v", 11);
    char c = source_[i];
    if (size_t k = kNames.find(c); k != std::string_view::npos) return out += kValues[k], true;
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {  // Python keeps the backslash of others
      if (c != '\n') out += '\\', out += c;
      return std::isdigit(static_cast<unsigned char>(c)) == 0 && c != 'N';
    }
    std::string hex = source_.substr(i + 1, digits);
    if (hex.size() != digits || hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
      return false;
    auto value = static_cast<char32_t>(std::stoul(hex, nullptr, 16));
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return false;
    append_utf8(value, out);
    i += digits;
    return true;
  }

  void push(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void move_to(size_t next) {
    for (; at_ < next; ++at_) line_ += source_[at_] == '\n';
  }
  void fail(const std::string& what) {
    if (status_.ok()) status_ = Status(Code::kCorrupt, "line " + std::to_string(line_) + ": " + what);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;
  std::vector<Token> tokens_;
  Status status_;
};

}  // namespace

Result<std::vector<Token>> tokenize(std::string_view source) {
  std::string text;  // newlines as "\n", and the last one is not part of the template
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    text += source[i] == '\r' ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return Lexer(std::move(text)).run();
}

}  // namespace slim::model::jinja
