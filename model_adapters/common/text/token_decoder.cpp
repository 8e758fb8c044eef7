#include "common/text/token_decoder.hpp"

#include <array>
#include <charconv>

#include "common/text/normalizer.hpp"
#include "common/text/tokenizer_bpe.hpp"
#include "common/text/tokenizer_component.hpp"
#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

using nlohmann::json;
using Tokens = std::vector<std::string>;

/// Byte of each character of the byte-level alphabet, which ends before U+0144; -1 for others.
const std::array<int16_t, 0x144>& bytes_of_alphabet() {
  static const auto kBytes = [] {
    std::array<int16_t, 0x144> out;
    out.fill(-1);
    for (int16_t b = 0; b < 256; ++b) {
      size_t i = 0;
      out[next_code_point(byte_level_alphabet()[static_cast<size_t>(b)], i)] = b;
    }
    return out;
  }();
  return kBytes;
}

/// A token outside the alphabet (an added one) stands for its own characters.
void append_bytes(std::string_view token, std::string& out) {
  const size_t before = out.size();
  for (size_t i = 0; i < token.size();) {
    const char32_t c = next_code_point(token, i);
    const int16_t byte = c < bytes_of_alphabet().size() ? bytes_of_alphabet()[c] : int16_t{-1};
    if (byte < 0) {
      out.resize(before);
      out += token;
      return;
    }
    out.push_back(static_cast<char>(byte));
  }
}

void join_byte_level(Tokens& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) append_bytes(token, bytes);
  tokens = {is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes)};
}

/// The byte of "<0x0A>", or -1.
int byte_of(std::string_view token) {
  unsigned value = 0;
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  return error == std::errc() && end == token.data() + 5 ? static_cast<int>(value) : -1;
}

/// Runs of byte tokens become their text, or one U+FFFD a byte if it is not UTF-8 as a whole.
void join_fallback_bytes(Tokens& tokens) {
  Tokens out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_valid_utf8(bytes)) {
      out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), "\xEF\xBF\xBD");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const int byte = byte_of(token); byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
    } else {
      flush();
      out.push_back(std::move(token));
    }
  }
  flush();
  tokens = std::move(out);
}

void fuse(Tokens& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  tokens = {std::move(all)};
}

void strip(std::string& token, const std::string& what, size_t start, size_t stop) {
  while (start > 0 && token.starts_with(what)) token.erase(0, what.size()), --start;
  while (stop > 0 && token.ends_with(what)) token.erase(token.size() - what.size()), --stop;
}

std::string without_marks(std::string_view token, std::string_view mark, std::string_view instead) {
  std::string out;
  for (size_t i = 0; i < token.size();) {
    if (token.substr(i).starts_with(mark)) {
      out += instead;
      i += mark.size();
    } else {
      out += token[i++];
    }
  }
  return out;
}

Result<size_t> count_of(const json& value, const char* key, const std::string& where) {
  const auto it = value.find(key);
  if (it == value.end() || !is_index(*it, SIZE_MAX))
    return corrupt_key(where + "." + key, "expected a count");
  return it->get<size_t>();
}

}  // namespace

Result<TokenDecoder::Step> TokenDecoder::read_step(const std::string& type, const json& value,
                                                   const std::string& where, bool& known) {
  Step step;
  known = true;
  if (type == "ByteLevel") {
    step.kind = Step::Kind::kByteLevel;
  } else if (type == "Replace") {
    step.kind = Step::Kind::kReplace;
    SLIM_ASSIGN(const std::string pattern, pattern_of(value, where));
    auto regex = TokenizerRegex::compile(pattern);
    if (!regex.ok()) return regex.status().in(where);
    step.regex = *std::move(regex);
    SLIM_ASSIGN(step.text, text_of(value, "content", where));
  } else if (type == "ByteFallback") {
    step.kind = Step::Kind::kByteFallback;
  } else if (type == "Strip") {
    step.kind = Step::Kind::kStrip;
    SLIM_ASSIGN(step.text, character_of(value, "content", where));
    SLIM_ASSIGN(step.start, count_of(value, "start", where));
    SLIM_ASSIGN(step.stop, count_of(value, "stop", where));
  } else if (type == "Metaspace") {
    step.kind = Step::Kind::kMetaspace;
    SLIM_ASSIGN(step.text, character_of(value, "replacement", where));
    step.drop_first = value.value("prepend_scheme", json("always")) != "never";
  } else {
    known = type == "Fuse";
  }
  return step;
}

Result<TokenDecoder> TokenDecoder::create(const json& value) {
  SLIM_ASSIGN(const auto parts, components_of(value, "decoders", "decoder"));
  TokenDecoder out;
  for (const TokenizerComponent& part : parts) {
    bool known = false;
    SLIM_ASSIGN(Step step, read_step(part.type, *part.value, part.where, known));
    if (!known)
      return unsupported_component(part,
                                   "Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace");
    out.steps_.push_back(std::move(step));
  }
  return out;
}

void TokenDecoder::apply(const Step& step, Tokens& tokens) {
  switch (step.kind) {
    case Step::Kind::kByteLevel:
      return join_byte_level(tokens);
    case Step::Kind::kByteFallback:
      return join_fallback_bytes(tokens);
    case Step::Kind::kFuse:
      return fuse(tokens);
    case Step::Kind::kStrip:
      for (std::string& token : tokens) strip(token, step.text, step.start, step.stop);
      return;
    case Step::Kind::kReplace:
      for (std::string& token : tokens) {
        // A token is far too short for a pattern to give up on.
        if (auto replaced = replace_matches(step.regex, token, step.text); replaced.ok())
          token = *std::move(replaced);
      }
      return;
    case Step::Kind::kMetaspace:
      for (std::string& token : tokens)
        token = without_marks(token, step.text, &token == &tokens.front() && step.drop_first ? "" : " ");
  }
}

std::string TokenDecoder::decode(Tokens tokens) const {
  for (const Step& step : steps_) apply(step, tokens);
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (steps_.empty() && i > 0) out += ' ';
    out += tokens[i];
  }
  return is_valid_utf8(out) ? out : replace_invalid_utf8(out);
}

}  // namespace slim::model
