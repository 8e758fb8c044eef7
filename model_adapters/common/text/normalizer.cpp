#include "common/text/normalizer.hpp"

#include "common/text/tokenizer_component.hpp"
#include "common/text/unicode.hpp"

namespace slim::model {

Result<std::string> replace_matches(const TokenizerRegex& regex, std::string_view text,
                                    std::string_view content) {
  std::vector<RegexPiece> pieces;
  SLIM_TRY(regex.split(text, pieces));
  std::string out;
  for (const RegexPiece& piece : pieces)
    out += piece.match ? content : text.substr(piece.begin, piece.end - piece.begin);
  return out;
}

Result<Normalizer> Normalizer::create(const nlohmann::json& value) {
  SLIM_ASSIGN(const auto parts, components_of(value, "normalizers", "normalizer"));
  Normalizer out;
  for (const TokenizerComponent& part : parts) {
    Step step;
    if (part.type == "Prepend") {
      step.kind = Step::Kind::kPrepend;
      SLIM_ASSIGN(step.text, text_of(*part.value, "prepend", part.where));
    } else if (part.type == "Replace") {
      step.kind = Step::Kind::kReplace;
      SLIM_ASSIGN(const std::string pattern, pattern_of(*part.value, part.where));
      auto regex = TokenizerRegex::compile(pattern);
      if (!regex.ok()) return regex.status().in(part.where);
      step.regex = *std::move(regex);
      SLIM_ASSIGN(step.text, text_of(*part.value, "content", part.where));
    } else if (part.type != "NFC") {
      return unsupported_component(part, "NFC, Prepend, Replace, Sequence");
    }
    out.steps_.push_back(std::move(step));
  }
  return out;
}

Result<std::string> Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::Kind::kNfc:
        out = nfc(out);
        break;
      case Step::Kind::kPrepend:
        if (!out.empty()) out.insert(0, step.text);
        break;
      case Step::Kind::kReplace: {
        SLIM_ASSIGN(out, replace_matches(step.regex, out, step.text));
      }
    }
  }
  return out;
}

}  // namespace slim::model
