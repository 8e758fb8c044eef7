#include "common/text/pre_tokenizer.hpp"

#include <algorithm>

#include "common/text/tokenizer_bpe.hpp"
#include "common/text/tokenizer_component.hpp"

namespace slim::model {
namespace {

using nlohmann::json;

/// The pattern that ByteLevel splits by itself when use_regex is on (GPT-2).
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// \w inside of a class: see is_word().
constexpr const char* kWordClass =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\u200C\u200D\u24B6-\u24E9\U0001F130-\U0001F149\U0001F150-"
    "\U0001F169\U0001F170-"
    "\U0001F189";

std::string with_spaces_marked(std::string_view text, const std::string& mark) {
  std::string out;
  for (const char c : text) c == ' ' ? out += mark : out += c;
  return out;
}

}  // namespace

Result<PreTokenizer::Behavior> PreTokenizer::behavior_of(const json& value, const std::string& where,
                                                         const char* fallback) {
  std::string name = fallback;
  if (value.contains("behavior") || name.empty()) {
    SLIM_ASSIGN(name, text_of(value, "behavior", where));
  }
  static constexpr const char* kNames[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                           "Contiguous"};
  const auto* it = std::find(std::begin(kNames), std::end(kNames), name);
  if (it == std::end(kNames)) return corrupt_key(where + ".behavior", "unknown value '" + name + "'");
  return static_cast<Behavior>(it - std::begin(kNames));
}

Result<PreTokenizer::Step> PreTokenizer::pattern_step(const std::string& pattern, Behavior behavior) {
  Step step;
  step.behavior = behavior;
  SLIM_ASSIGN(step.regex, TokenizerRegex::compile(pattern));
  return step;
}

Result<PreTokenizer::Step> PreTokenizer::read_split(const json& value, const std::string& where) {
  SLIM_ASSIGN(const std::string pattern, pattern_of(value, where));
  SLIM_ASSIGN(const Behavior behavior, behavior_of(value, where, ""));
  auto step = pattern_step(pattern, behavior);
  if (!step.ok()) return step.status().in(where);
  SLIM_ASSIGN(step->invert, flag_of(value, "invert", false, where));
  return step;
}

Result<PreTokenizer::Step> PreTokenizer::read_byte_level(const json& value, const std::string& where) {
  Step step;
  step.kind = Step::Kind::kByteLevel;
  SLIM_ASSIGN(step.add_prefix_space, flag_of(value, "add_prefix_space", true, where));
  SLIM_ASSIGN(step.has_regex, flag_of(value, "use_regex", true, where));
  if (step.has_regex) {
    SLIM_ASSIGN(step.regex, TokenizerRegex::compile(kByteLevelPattern));
  }
  return step;
}

Result<PreTokenizer::Step> PreTokenizer::read_metaspace(const json& value, const std::string& where) {
  Step step;
  step.kind = Step::Kind::kMetaspace;
  step.behavior = Behavior::kMergedWithNext;
  SLIM_ASSIGN(step.mark, character_of(value, "replacement", where));
  SLIM_ASSIGN(step.has_regex, flag_of(value, "split", true, where));
  if (step.has_regex) {
    SLIM_ASSIGN(const std::string pattern, pattern_of({{"pattern", {{"String", step.mark}}}}, where));
    SLIM_ASSIGN(step.regex, TokenizerRegex::compile(pattern));
  }
  std::string scheme = "always";
  if (value.contains("prepend_scheme")) {
    SLIM_ASSIGN(scheme, text_of(value, "prepend_scheme", where));
  }
  if (scheme != "always" && scheme != "first" && scheme != "never")
    return corrupt_key(where + ".prepend_scheme", "unknown value '" + scheme + "'");
  step.prepend = scheme == "always"  ? Prepend::kAlways
                 : scheme == "first" ? Prepend::kFirst
                                     : Prepend::kNever;
  SLIM_ASSIGN(const bool prefix, flag_of(value, "add_prefix_space", true, where));
  if (!prefix && step.prepend != Prepend::kNever)
    return corrupt_key(where + ".add_prefix_space", "false contradicts prepend_scheme '" + scheme + "'");
  return step;
}

Result<PreTokenizer::Step> PreTokenizer::read_step(const std::string& type, const json& value,
                                                   const std::string& where, bool& known) {
  known = true;
  if (type == "Split") return read_split(value, where);
  if (type == "ByteLevel") return read_byte_level(value, where);
  if (type == "Metaspace") return read_metaspace(value, where);
  if (type == "Whitespace") {
    const std::string word = kWordClass;
    SLIM_ASSIGN(Step step, pattern_step("[" + word + "]+|[^\\s" + word + "]+", Behavior::kRemoved));
    step.invert = true;
    return step;
  }
  if (type == "WhitespaceSplit") return pattern_step(R"(\s)", Behavior::kRemoved);
  if (type == "Digits") {
    SLIM_ASSIGN(const bool single, flag_of(value, "individual_digits", false, where));
    return pattern_step(R"(\p{N})", single ? Behavior::kIsolated : Behavior::kContiguous);
  }
  if (type == "Punctuation") {
    SLIM_ASSIGN(const Behavior behavior, behavior_of(value, where, "Isolated"));
    return pattern_step(R"([\p{P}$+<=>\^`|~])", behavior);
  }
  if (type == "CharDelimiterSplit") {
    SLIM_ASSIGN(const std::string delimiter, character_of(value, "delimiter", where));
    SLIM_ASSIGN(const std::string pattern, pattern_of({{"pattern", {{"String", delimiter}}}}, where));
    return pattern_step(pattern, Behavior::kRemoved);
  }
  known = false;
  return Step{};
}

Result<PreTokenizer> PreTokenizer::create(const json& value) {
  SLIM_ASSIGN(const auto parts, components_of(value, "pretokenizers", "pre_tokenizer"));
  PreTokenizer out;
  for (const TokenizerComponent& part : parts) {
    bool known = false;
    SLIM_ASSIGN(Step step, read_step(part.type, *part.value, part.where, known));
    if (!known)
      return unsupported_component(part,
                                   "Sequence, Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace, "
                                   "WhitespaceSplit, CharDelimiterSplit");
    out.steps_.push_back(std::move(step));
  }
  return out;
}

/// Merges or drops pieces in place as the behavior says.
void PreTokenizer::apply(Behavior behavior, std::vector<RegexPiece>& pieces) {
  if (behavior == Behavior::kIsolated) return;
  if (behavior == Behavior::kRemoved) {
    std::erase_if(pieces, [](const RegexPiece& p) { return p.match; });
    return;
  }
  const bool next = behavior == Behavior::kMergedWithNext;
  if (next) std::reverse(pieces.begin(), pieces.end());
  std::vector<RegexPiece> out;
  bool previous = false;
  for (const RegexPiece& p : pieces) {
    const bool join = behavior == Behavior::kContiguous ? p.match == previous : p.match && !previous;
    if (join && !out.empty()) {
      out.back().begin = std::min(out.back().begin, p.begin);
      out.back().end = std::max(out.back().end, p.end);
    } else {
      out.push_back(p);
    }
    previous = p.match;
  }
  if (next) std::reverse(out.begin(), out.end());
  pieces = std::move(out);
}

std::string_view PreTokenizer::prefixed(const Step& step, Piece piece, std::deque<std::string>& owned) {
  if (step.kind == Step::Kind::kByteLevel && step.add_prefix_space && !piece.text.starts_with(' '))
    return owned.emplace_back(" " + std::string(piece.text));
  if (step.kind != Step::Kind::kMetaspace) return piece.text;
  std::string marked = with_spaces_marked(piece.text, step.mark);
  const bool wanted = step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && piece.first);
  if (wanted && !marked.starts_with(step.mark)) marked.insert(0, step.mark);
  return owned.emplace_back(std::move(marked));
}

Status PreTokenizer::split(std::string_view text, bool first, Words& words) const {
  std::vector<Piece> pieces = {{text, first}}, next;
  std::vector<RegexPiece> ranges;
  for (const Step& step : steps_) {
    next.clear();
    for (const Piece& piece : pieces) {
      const std::string_view whole = prefixed(step, piece, words.owned);
      ranges.clear();
      if (step.has_regex) {
        SLIM_TRY(step.regex.split(whole, ranges));
        if (step.invert)
          for (RegexPiece& r : ranges) r.match = !r.match;
        apply(step.behavior, ranges);
      } else {
        ranges.push_back({0, whole.size(), false});
      }
      for (const RegexPiece& r : ranges)
        next.push_back({whole.substr(r.begin, r.end - r.begin), piece.first && r.begin == 0});
    }
    std::swap(pieces, next);
    if (step.kind != Step::Kind::kByteLevel || &step == &steps_.back()) continue;
    for (Piece& piece : pieces) piece.text = words.owned.emplace_back(in_byte_level_alphabet(piece.text));
  }
  for (const Piece& piece : pieces) words.views.push_back(piece.text);
  return {};
}

}  // namespace slim::model
