#pragma once
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/text/tokenizer_regex.hpp"
#include "slim/status.hpp"

namespace slim::model {

/// The "pre_tokenizer" of a tokenizer.json: cuts text into the words that the model sees. Immutable; may be used from any thread.
class PreTokenizer {
 public:
  /// Words of one text. Views into `owned` and into the text; may not be copied, since short strings would move.
  struct Words {
    Words() = default;
    Words(const Words&) = delete;
    Words& operator=(const Words&) = delete;
    std::vector<std::string_view> views;
    std::deque<std::string> owned;  ///< those that are not parts of the text
  };

  /// Reads a component, a Sequence or null. Errors: kCorrupt, or kUnsupported with what there is: Split, ByteLevel, Metaspace, Digits,
  /// Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit.
  static Result<PreTokenizer> create(const nlohmann::json& value);

  /// True where words are bytes that the model knows by the characters of the byte-level alphabet: the last component is ByteLevel.
  bool gives_bytes() const { return !steps_.empty() && steps_.back().kind == Step::Kind::kByteLevel; }

  /// Puts the words of valid UTF-8 `text`, which must outlive them, into `words`. `first`: the text stands at the beginning of what is
  /// tokenized, where Metaspace may put its mark. Error: a pattern that gives up on this text.
  Status split(std::string_view text, bool first, Words& words) const;

 private:
  /// How the matches of a pattern are treated.
  enum class Behavior : uint8_t { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  /// When Metaspace puts its mark before a text.
  enum class Prepend : uint8_t { kAlways, kFirst, kNever };
  struct Step {
    enum class Kind : uint8_t { kSplit, kByteLevel, kMetaspace } kind = Kind::kSplit;
    TokenizerRegex regex;
    bool has_regex = true;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    bool add_prefix_space = false;  ///< ByteLevel: a space before a piece that starts with none
    Prepend prepend = Prepend::kAlways;
    std::string mark;  ///< of Metaspace, in place of spaces
  };
  struct Piece {
    std::string_view text;
    bool first = false;
  };

  static Result<Behavior> behavior_of(const nlohmann::json& value, const std::string& where,
                                      const char* fallback);
  static Result<Step> read_split(const nlohmann::json& value, const std::string& where);
  static Result<Step> read_byte_level(const nlohmann::json& value, const std::string& where);
  static Result<Step> read_metaspace(const nlohmann::json& value, const std::string& where);
  static Result<Step> pattern_step(const std::string& pattern, Behavior behavior);
  static Result<Step> read_step(const std::string& type, const nlohmann::json& value,
                                const std::string& where, bool& known);
  static void apply(Behavior behavior, std::vector<RegexPiece>& pieces);
  static std::string_view prefixed(const Step& step, Piece piece, std::deque<std::string>& owned);

  std::vector<Step> steps_;
};

}  // namespace slim::model
