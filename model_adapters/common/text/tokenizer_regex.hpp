#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "slim/status.hpp"

namespace slim::model {

/// Half-open byte range of a text, and whether the pattern matched it (or it lies between matches).
struct RegexPiece {
  size_t begin, end;
  bool match;
};

/// A pre-tokenizer pattern as the tokenizers library (Oniguruma) understands it, run by PCRE2's JIT. Syntax that the two
/// engines read differently, or that depends on character tables other than general categories, is refused. Immutable;
/// copies share the compiled pattern and may be used from any thread.
class TokenizerRegex {
 public:
  static Result<TokenizerRegex> compile(const std::string& pattern);
  /// Appends to `pieces` the whole of valid UTF-8 `text`, matches and what lies between them, in order. Error: a pattern
  /// that needs more steps than any sane one.
  Status split(std::string_view text, std::vector<RegexPiece>& pieces) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace slim::model
