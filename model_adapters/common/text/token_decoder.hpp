#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/text/tokenizer_regex.hpp"
#include "slim/status.hpp"

namespace slim::model {

/// The "decoder" of a tokenizer.json: from tokens to text. Immutable; may be used from any thread.
class TokenDecoder {
 public:
  /// Reads a component, a Sequence or null (tokens with spaces between them). Errors: kCorrupt, or kUnsupported with what there is:
  /// ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace.
  static Result<TokenDecoder> create(const nlohmann::json& value);

  /// Joins tokens to text. Bytes that are no UTF-8 become U+FFFD.
  std::string decode(std::vector<std::string> tokens) const;

 private:
  struct Step {
    enum class Kind : uint8_t {
      kByteLevel,
      kReplace,
      kByteFallback,
      kFuse,
      kStrip,
      kMetaspace
    } kind = Kind::kFuse;
    TokenizerRegex regex;    ///< Replace
    std::string text;        ///< what Replace puts, the character that Strip removes, the mark of Metaspace
    size_t start = 0;        ///< Strip: at most so many at the beginning
    size_t stop = 0;         ///< and at the end
    bool drop_first = true;  ///< Metaspace: marks of the first token are no spaces
  };
  static Result<Step> read_step(const std::string& type, const nlohmann::json& value,
                                const std::string& where, bool& known);
  static void apply(const Step& step, std::vector<std::string>& tokens);

  std::vector<Step> steps_;
};

}  // namespace slim::model
