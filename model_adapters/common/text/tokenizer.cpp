#include "common/text/tokenizer.hpp"

#include <algorithm>
#include <cctype>
#include <deque>
#include <unordered_map>

#include "common/files/side_file.hpp"
#include "common/text/tokenizer_added.hpp"
#include "common/text/tokenizer_bpe.hpp"
#include "common/text/tokenizer_json.hpp"
#include "common/text/tokenizer_regex.hpp"
#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

using nlohmann::json;

/// The pattern that ByteLevel splits by itself when use_regex is on (GPT-2).
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string shown(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 120);
}

Status corrupt(const std::string& key, const std::string& what) {
  return Status(Code::kCorrupt, key + ": " + what);
}

Result<json> member(const json& object, const std::string& key, json::value_t type,
                    const std::string& where) {
  auto it = object.find(key);
  if (it == object.end()) return corrupt(where + "." + key, "missing");
  bool same = it->type() == type || (type == json::value_t::number_integer && it->is_number_integer());
  if (!same)
    return corrupt(where + "." + key, "found " + shown(*it) + ", expected " + json(type).type_name());
  return *it;
}

Result<std::string> text_of(const json& object, const std::string& key, const std::string& where) {
  auto it = object.is_object() ? object.find(key) : object.end();
  if (it == object.end() || !it->is_string())
    return corrupt(where + "." + key, "expected a string in " + shown(object));
  return it->get<std::string>();
}

Result<bool> flag_of(const json& object, const std::string& key, bool fallback, const std::string& where) {
  auto it = object.find(key);
  if (it == object.end()) return fallback;
  if (!it->is_boolean())
    return corrupt(where + "." + key, "found " + shown(*it) + ", expected true or false");
  return it->get<bool>();
}

/// A component, or the components of a Sequence (of Sequences), each with its path. null has none.
struct Component {
  std::string type, where;
  const json* value;
};
Status flatten(const json& value, const char* list, const std::string& where, std::vector<Component>& out) {
  if (value.is_null()) return {};
  SLIM_ASSIGN(std::string type, text_of(value, "type", where));
  if (type != "Sequence") {
    out.push_back({type, where, &value});
    return {};
  }
  auto items = value.find(list);
  if (items == value.end() || !items->is_array()) return corrupt(where + "." + list, "expected a list");
  for (size_t i = 0; i < items->size(); ++i)
    SLIM_TRY(flatten((*items)[i], list, where + "." + list + "[" + std::to_string(i) + "]", out));
  return {};
}

Status unsupported(const Component& c, const std::string& supported) {
  return Status(Code::kUnsupported,
                c.where + ": component " + c.type + " is not supported; supported: " + supported);
}

/// How the matches of a Split are treated.
enum class Behavior : uint8_t { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  TokenizerRegex regex;
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;
  bool add_prefix_space = false;  ///< first put a space before a piece that starts with none
  bool has_regex = true;
};

/// Merges or drops pieces in place as the behavior says.
void apply(Behavior behavior, std::vector<RegexPiece>& pieces) {
  if (behavior == Behavior::kIsolated) return;
  if (behavior == Behavior::kRemoved) {
    std::erase_if(pieces, [](const RegexPiece& p) { return p.match; });
    return;
  }
  bool next = behavior == Behavior::kMergedWithNext;
  if (next) std::reverse(pieces.begin(), pieces.end());
  std::vector<RegexPiece> out;
  bool previous = false;
  for (const RegexPiece& p : pieces) {
    bool join = behavior == Behavior::kContiguous ? p.match == previous : p.match && !previous;
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

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (std::ispunct(static_cast<unsigned char>(c))) out += '\\';
    out += c;
  }
  return out;
}

Result<SplitStep> read_split(const Component& c) {
  SplitStep step;
  SLIM_ASSIGN(json pattern, member(*c.value, "pattern", json::value_t::object, c.where));
  bool literal = pattern.contains("String");
  SLIM_ASSIGN(std::string text, text_of(pattern, literal ? "String" : "Regex", c.where + ".pattern"));
  SLIM_ASSIGN(std::string behavior, text_of(*c.value, "behavior", c.where));
  static constexpr const char* kNames[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                           "Contiguous"};
  auto it = std::find(std::begin(kNames), std::end(kNames), behavior);
  if (it == std::end(kNames)) return corrupt(c.where + ".behavior", "unknown value '" + behavior + "'");
  step.behavior = static_cast<Behavior>(it - std::begin(kNames));
  SLIM_ASSIGN(step.invert, flag_of(*c.value, "invert", false, c.where));
  auto regex = TokenizerRegex::compile(literal ? escaped(text) : text);
  if (!regex.ok()) return regex.status().in(c.where);
  step.regex = *std::move(regex);
  return step;
}

Result<SplitStep> read_byte_level(const Component& c) {
  SplitStep step;
  SLIM_ASSIGN(step.add_prefix_space, flag_of(*c.value, "add_prefix_space", true, c.where));
  SLIM_ASSIGN(step.has_regex, flag_of(*c.value, "use_regex", true, c.where));
  if (step.has_regex) {
    SLIM_ASSIGN(step.regex, TokenizerRegex::compile(kByteLevelPattern));
  }
  return step;
}

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
  size_t before = out.size();
  for (size_t i = 0; i < token.size();) {
    char32_t c = next_code_point(token, i);
    int16_t byte = c < bytes_of_alphabet().size() ? bytes_of_alphabet()[c] : int16_t{-1};
    if (byte < 0) {
      out.resize(before);
      out += token;
      return;
    }
    out.push_back(static_cast<char>(byte));
  }
}

}  // namespace

struct Tokenizer::Impl {
  TokenizerJson json;  ///< holds the strings of the vocabulary
  BytePairModel model;
  std::vector<AddedToken> added;
  std::unordered_map<std::string_view, int64_t> added_ids;
  AddedTokenFinder raw, normalized;
  bool any_normalized = false;
  bool nfc = false;
  std::vector<SplitStep> steps;
  std::vector<int64_t> prefix, suffix;
  struct Token {
    std::string_view text;
    bool special = false;
  };
  std::vector<Token> tokens;  ///< by id

  Status read();
  Status read_normalizer();
  Status read_added();
  Result<AddedToken> read_added_token(const nlohmann::json& value, const std::string& where) const;
  Status add(AddedToken token, const std::string& where);
  Status read_pre_tokenizer();
  Status read_post_processor();
  Status read_template(const nlohmann::json& value, const std::string& where);
  Status read_decoder();
  const nlohmann::json& part(const char* key) const;
  std::string normalize(std::string_view text) const { return nfc ? model::nfc(text) : std::string(text); }
  Status encode_text(std::string text, std::vector<int64_t>& ids) const;
};

const json& Tokenizer::Impl::part(const char* key) const {
  static const nlohmann::json kNull;
  auto it = json.rest.find(key);
  return it == json.rest.end() ? kNull : *it;
}

// ---- reading ----------------------------------------------------------------------------------------------------------

Status Tokenizer::Impl::read() {
  SLIM_ASSIGN(model, BytePairModel::create(json));
  int64_t largest = -1;
  for (const auto& entry : json.vocab) largest = std::max(largest, entry.id);
  tokens.resize(static_cast<size_t>(largest + 1));
  for (const auto& entry : json.vocab) tokens[static_cast<size_t>(entry.id)].text = json.text(entry.token);
  SLIM_TRY(read_normalizer());
  SLIM_TRY(read_added());
  SLIM_TRY(read_pre_tokenizer());
  SLIM_TRY(read_post_processor());
  return read_decoder();
}

Status Tokenizer::Impl::read_normalizer() {
  std::vector<Component> parts;
  SLIM_TRY(flatten(part("normalizer"), "normalizers", "normalizer", parts));
  for (const Component& c : parts) {
    if (c.type != "NFC") return unsupported(c, "NFC, Sequence");
    nfc = true;
  }
  return {};
}

Result<AddedToken> Tokenizer::Impl::read_added_token(const nlohmann::json& value,
                                                     const std::string& where) const {
  if (!value.is_object()) return corrupt(where, "expected an object, found " + shown(value));
  AddedToken token;
  SLIM_ASSIGN(token.content, text_of(value, "content", where));
  SLIM_ASSIGN(nlohmann::json id, member(value, "id", nlohmann::json::value_t::number_integer, where));
  SLIM_ASSIGN(token.single_word, flag_of(value, "single_word", false, where));
  SLIM_ASSIGN(token.lstrip, flag_of(value, "lstrip", false, where));
  SLIM_ASSIGN(token.rstrip, flag_of(value, "rstrip", false, where));
  SLIM_ASSIGN(token.special, flag_of(value, "special", false, where));
  SLIM_ASSIGN(token.normalized, flag_of(value, "normalized", !token.special, where));
  bool in_range = id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(kMaxVocabulary);
  if (!in_range)
    return corrupt(where + ".id",
                   "found " + shown(id) + ", expected 0 to " + std::to_string(kMaxVocabulary - 1));
  token.id = id.get<int64_t>();
  if (token.content.empty()) return corrupt(where + ".content", "empty");
  return token;
}

Status Tokenizer::Impl::add(AddedToken token, const std::string& where) {
  auto id = static_cast<size_t>(token.id);
  if (id >= tokens.size()) tokens.resize(id + 1);
  std::string_view there = tokens[id].text;
  int32_t in_model = model.id_of(token.content);
  if (!there.empty() && there != token.content)
    return corrupt(where + ".id", std::to_string(id) + " belongs to '" + std::string(there) + "' already");
  if (in_model >= 0 && in_model != token.id)
    return corrupt(where, "'" + token.content + "' has id " + std::to_string(in_model) + " in model.vocab");
  added.push_back(std::move(token));
  return {};
}

Status Tokenizer::Impl::read_added() {
  const nlohmann::json& list = part("added_tokens");
  if (list.is_null()) return {};
  if (!list.is_array()) return corrupt("added_tokens", "expected a list");
  added.reserve(list.size());  // views into its strings are kept
  for (size_t i = 0; i < list.size(); ++i) {
    std::string where = "added_tokens[" + std::to_string(i) + "]";
    SLIM_ASSIGN(AddedToken token, read_added_token(list[i], where));
    SLIM_TRY(add(std::move(token), where));
    AddedToken& kept = added.back();
    if (kept.normalized) kept.content = normalize(kept.content);  // also what decoding gives back
    if (!added_ids.emplace(kept.content, kept.id).second)
      return corrupt(where, "'" + kept.content + "' is there twice");
    tokens[static_cast<size_t>(kept.id)] = {kept.content, kept.special};
    (kept.normalized ? normalized : raw).add(kept);
    any_normalized |= kept.normalized;
  }
  return {};
}

Status Tokenizer::Impl::read_pre_tokenizer() {
  std::vector<Component> parts;
  SLIM_TRY(flatten(part("pre_tokenizer"), "pretokenizers", "pre_tokenizer", parts));
  for (size_t i = 0; i < parts.size(); ++i) {
    const Component& c = parts[i];
    bool last = i + 1 == parts.size();
    if (c.type != "Split" && c.type != "ByteLevel") return unsupported(c, "Sequence, Split, ByteLevel");
    if ((c.type == "ByteLevel") != last)
      return Status(Code::kUnsupported,
                    c.where + ": ByteLevel must be the last pre-tokenizer, and there only");
    SLIM_ASSIGN(SplitStep step, last ? read_byte_level(c) : read_split(c));
    steps.push_back(std::move(step));
  }
  if (parts.empty()) return Status(Code::kUnsupported, "pre_tokenizer: none; ByteLevel is expected");
  return {};
}

Status Tokenizer::Impl::read_template(const nlohmann::json& value, const std::string& where) {
  SLIM_ASSIGN(nlohmann::json single, member(value, "single", nlohmann::json::value_t::array, where));
  auto specials = value.find("special_tokens");
  bool behind = false;
  for (size_t i = 0; i < single.size(); ++i) {
    std::string at = where + ".single[" + std::to_string(i) + "]";
    if (!single[i].is_object()) return corrupt(at, "found " + shown(single[i]));
    if (single[i].contains("Sequence")) {
      if (behind) return corrupt(at, "a second Sequence");
      behind = true;
      continue;
    }
    auto special = single[i].find("SpecialToken");
    if (special == single[i].end()) return corrupt(at, "found " + shown(single[i]));
    SLIM_ASSIGN(std::string id, text_of(*special, "id", at + ".SpecialToken"));
    if (specials == value.end() || !specials->is_object() || !specials->contains(id) ||
        !(*specials)[id].is_object())
      return corrupt(where + ".special_tokens", "no entry for '" + id + "'");
    SLIM_ASSIGN(nlohmann::json ids, member((*specials)[id], "ids", nlohmann::json::value_t::array,
                                           where + ".special_tokens['" + id + "']"));
    for (const auto& n : ids) {
      if (!n.is_number_unsigned() || n.get<uint64_t>() >= tokens.size())
        return corrupt(where + ".special_tokens['" + id + "'].ids", "found " + shown(n));
      (behind ? suffix : prefix).push_back(n.get<int64_t>());
    }
  }
  if (!behind) return corrupt(where + ".single", "no Sequence");
  return {};
}

Status Tokenizer::Impl::read_post_processor() {
  std::vector<Component> parts;
  SLIM_TRY(flatten(part("post_processor"), "processors", "post_processor", parts));
  for (const Component& c : parts) {
    if (c.type == "ByteLevel") continue;  // moves offsets, no ids
    if (c.type != "TemplateProcessing") return unsupported(c, "Sequence, ByteLevel, TemplateProcessing");
    if (!prefix.empty() || !suffix.empty()) return corrupt(c.where, "a second TemplateProcessing");
    SLIM_TRY(read_template(*c.value, c.where));
  }
  return {};
}

Status Tokenizer::Impl::read_decoder() {
  std::vector<Component> parts;
  SLIM_TRY(flatten(part("decoder"), "decoders", "decoder", parts));
  for (const Component& c : parts)
    if (c.type != "ByteLevel") return unsupported(c, "Sequence, ByteLevel");
  if (parts.size() != 1) return Status(Code::kUnsupported, "decoder: expected one ByteLevel decoder");
  return {};
}

Result<Tokenizer> Tokenizer::from_json(std::string_view text, const std::string& where) {
  auto impl = std::make_shared<Impl>();
  auto parsed = parse_tokenizer_json(text);
  if (!parsed.ok()) return parsed.status().in(where);
  impl->json = *std::move(parsed);
  if (Status status = impl->read(); !status.ok()) return std::move(status).in(where);
  impl->json.rest = nullptr;
  impl->json.vocab = {};
  impl->json.merges = {};
  Tokenizer out;
  out.impl_ = std::move(impl);
  return out;
}

Result<Tokenizer> Tokenizer::from_file(const std::string& path) {
  auto text = read_side_file(path);
  if (!text.ok() && text.status().code() == Code::kNotFound)
    return Status(Code::kNotFound, path + ": cannot be read; a model folder needs a tokenizer.json");
  if (!text.ok()) return text.status();
  return from_json(*text, path);
}

// ---- use --------------------------------------------------------------------------------------------------------------

Status Tokenizer::Impl::encode_text(std::string text, std::vector<int64_t>& ids) const {
  std::deque<std::string> prefixed;  // owns the pieces that got a space
  std::vector<std::string_view> pieces = {text}, next;
  std::vector<RegexPiece> ranges;
  for (const SplitStep& step : steps) {
    next.clear();
    for (std::string_view piece : pieces) {
      if (step.add_prefix_space && !piece.starts_with(' '))
        piece = prefixed.emplace_back(" " + std::string(piece));
      if (!step.has_regex) {
        next.push_back(piece);
        continue;
      }
      ranges.clear();
      SLIM_TRY(step.regex.split(piece, ranges));
      if (step.invert)
        for (RegexPiece& r : ranges) r.match = !r.match;
      apply(step.behavior, ranges);
      for (const RegexPiece& r : ranges) next.push_back(piece.substr(r.begin, r.end - r.begin));
    }
    std::swap(pieces, next);
  }
  for (std::string_view piece : pieces) model.encode(piece, ids);
  return {};
}

Result<std::vector<int64_t>> Tokenizer::encode(std::string_view text, bool add_special) const {
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = replace_invalid_utf8(text);
  const Impl& self = *impl_;
  std::vector<int64_t> ids;
  if (add_special) ids = self.prefix;
  std::vector<TextPiece> pieces, parts;
  self.raw.split(text, pieces);
  for (const TextPiece& piece : pieces) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    std::string normal = self.normalize(piece.text);
    if (!self.any_normalized) {
      SLIM_TRY(self.encode_text(std::move(normal), ids));
      continue;
    }
    parts.clear();
    self.normalized.split(normal, parts);
    for (const TextPiece& p : parts) {
      if (p.id >= 0) {
        ids.push_back(p.id);
      } else {
        SLIM_TRY(self.encode_text(std::string(p.text), ids));
      }
    }
  }
  if (add_special) ids.insert(ids.end(), self.suffix.begin(), self.suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special) const {
  std::string bytes;
  for (int64_t id : ids)
    if (!skip_special || !is_special(id)) append_bytes(token_of(id), bytes);
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

int64_t Tokenizer::id_of(std::string_view token) const {
  auto it = impl_->added_ids.find(token);
  return it != impl_->added_ids.end() ? it->second : impl_->model.id_of(token);
}

std::string_view Tokenizer::token_of(int64_t id) const {
  return id >= 0 && id < vocab_size() ? impl_->tokens[static_cast<size_t>(id)].text : std::string_view();
}

bool Tokenizer::is_special(int64_t id) const {
  return id >= 0 && id < vocab_size() && impl_->tokens[static_cast<size_t>(id)].special;
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(impl_->tokens.size()); }

}  // namespace slim::model
