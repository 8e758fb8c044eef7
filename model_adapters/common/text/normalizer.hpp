#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/text/tokenizer_regex.hpp"
#include "slim/status.hpp"

namespace slim::model {

/// The "normalizer" of a tokenizer.json: what is done to text before it is cut. Immutable; may be used from any thread.
class Normalizer {
 public:
  /// Reads a component, a Sequence or null. Errors: kCorrupt, or kUnsupported with what there is: NFC, Prepend, Replace.
  static Result<Normalizer> create(const nlohmann::json& value);

  /// Normalizes valid UTF-8. Error: a pattern that gives up on this text.
  Result<std::string> apply(std::string_view text) const;

 private:
  struct Step {
    enum class Kind : uint8_t { kNfc, kPrepend, kReplace } kind = Kind::kNfc;
    std::string text;  ///< what is put before, or in place of a match
    TokenizerRegex regex;
  };
  std::vector<Step> steps_;
};

/// Puts `content` in place of each match of `regex` in valid UTF-8. Error: a pattern that gives up on this text.
Result<std::string> replace_matches(const TokenizerRegex& regex, std::string_view text,
                                    std::string_view content);

}  // namespace slim::model
