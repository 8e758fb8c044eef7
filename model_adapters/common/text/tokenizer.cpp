#include "common/text/tokenizer.hpp"

#include <algorithm>
#include <unordered_map>
#include <variant>

#include "common/files/side_file.hpp"
#include "common/text/foreign_tokenizers.hpp"
#include "common/text/normalizer.hpp"
#include "common/text/pre_tokenizer.hpp"
#include "common/text/token_decoder.hpp"
#include "common/text/tokenizer_added.hpp"
#include "common/text/tokenizer_bpe.hpp"
#include "common/text/tokenizer_component.hpp"
#include "common/text/tokenizer_json.hpp"
#include "common/text/tokenizer_unigram.hpp"
#include "common/text/unicode.hpp"

namespace slim::model {

struct Tokenizer::Impl {
  TokenizerJson json;  ///< holds the strings of the vocabulary
  std::variant<BytePairModel, UnigramModel> model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  TokenDecoder decoder;
  std::vector<AddedToken> added;
  std::unordered_map<std::string_view, int64_t> added_ids;
  AddedTokenFinder raw, normalized;
  bool any_normalized = false;
  std::vector<int64_t> prefix, suffix;
  struct Token {
    std::string_view text;
    bool special = false;
  };
  std::vector<Token> tokens;  ///< by id

  Status read();
  Status read_model();
  Status read_added();
  Result<AddedToken> read_added_token(const nlohmann::json& value, const std::string& where) const;
  Status add(AddedToken token, const std::string& where);
  Status read_post_processor();
  Status read_template(const nlohmann::json& value, const std::string& where);
  const nlohmann::json& part(const char* key) const;
  int32_t id_in_model(std::string_view token) const {
    return std::visit([&](const auto& m) { return m.id_of(token); }, model);
  }
  Status encode_word(std::string_view word, std::vector<int64_t>& ids) const;
  Status encode_text(std::string_view text, bool first, std::vector<int64_t>& ids) const;
  Status encode_between(std::string_view text, bool first, std::vector<int64_t>& ids) const;
};

const nlohmann::json& Tokenizer::Impl::part(const char* key) const {
  static const nlohmann::json kNull;
  auto it = json.rest.find(key);
  return it == json.rest.end() ? kNull : *it;
}

// ---- reading ----------------------------------------------------------------------------------------------------------

Status Tokenizer::Impl::read_model() {
  const nlohmann::json& value = part("model");
  if (!value.is_object()) return corrupt_key("model", "missing or not an object");
  // Old files leave the type out; only Unigram has scores.
  const bool unigram = value.value("type", nlohmann::json()) == "Unigram" || !json.scores.empty();
  if (unigram) {
    SLIM_ASSIGN(model, UnigramModel::create(json));
  } else {
    SLIM_ASSIGN(model, BytePairModel::create(json));
  }
  return {};
}

Status Tokenizer::Impl::read() {
  SLIM_TRY(read_model());
  int64_t largest = -1;
  for (const auto& entry : json.vocab) largest = std::max(largest, entry.id);
  tokens.resize(static_cast<size_t>(largest + 1));
  for (const auto& entry : json.vocab) tokens[static_cast<size_t>(entry.id)].text = json.text(entry.token);
  SLIM_ASSIGN(normalizer, Normalizer::create(part("normalizer")));
  SLIM_TRY(read_added());
  SLIM_ASSIGN(pre_tokenizer, PreTokenizer::create(part("pre_tokenizer")));
  SLIM_TRY(read_post_processor());
  SLIM_ASSIGN(decoder, TokenDecoder::create(part("decoder")));
  return {};
}

Result<AddedToken> Tokenizer::Impl::read_added_token(const nlohmann::json& value,
                                                     const std::string& where) const {
  if (!value.is_object()) return corrupt_key(where, "expected an object, found " + shown(value));
  AddedToken token;
  SLIM_ASSIGN(token.content, text_of(value, "content", where));
  SLIM_ASSIGN(nlohmann::json id, member_of(value, "id", nlohmann::json::value_t::number_integer, where));
  SLIM_ASSIGN(token.single_word, flag_of(value, "single_word", false, where));
  SLIM_ASSIGN(token.lstrip, flag_of(value, "lstrip", false, where));
  SLIM_ASSIGN(token.rstrip, flag_of(value, "rstrip", false, where));
  SLIM_ASSIGN(token.special, flag_of(value, "special", false, where));
  SLIM_ASSIGN(token.normalized, flag_of(value, "normalized", !token.special, where));
  bool in_range = is_index(id, kMaxVocabulary);
  if (!in_range)
    return corrupt_key(where + ".id",
                       "found " + shown(id) + ", expected 0 to " + std::to_string(kMaxVocabulary - 1));
  token.id = id.get<int64_t>();
  if (token.content.empty()) return corrupt_key(where + ".content", "empty");
  return token;
}

Status Tokenizer::Impl::add(AddedToken token, const std::string& where) {
  auto id = static_cast<size_t>(token.id);
  if (id >= tokens.size()) tokens.resize(id + 1);
  std::string_view there = tokens[id].text;
  int32_t in_model = id_in_model(token.content);
  if (!there.empty() && there != token.content)
    return corrupt_key(where + ".id",
                       std::to_string(id) + " belongs to '" + std::string(there) + "' already");
  if (in_model >= 0 && in_model != token.id)
    return corrupt_key(where,
                       "'" + token.content + "' has id " + std::to_string(in_model) + " in model.vocab");
  added.push_back(std::move(token));
  return {};
}

Status Tokenizer::Impl::read_added() {
  const nlohmann::json& list = part("added_tokens");
  if (list.is_null()) return {};
  if (!list.is_array()) return corrupt_key("added_tokens", "expected a list");
  added.reserve(list.size());  // views into its strings are kept
  for (size_t i = 0; i < list.size(); ++i) {
    std::string where = "added_tokens[" + std::to_string(i) + "]";
    SLIM_ASSIGN(AddedToken token, read_added_token(list[i], where));
    SLIM_TRY(add(std::move(token), where));
    AddedToken& kept = added.back();
    if (kept.normalized) {
      SLIM_ASSIGN(const std::string normal, normalizer.apply(kept.content));
      kept.special &=
          normal == kept.content;  // the library knows special tokens by their text when it decodes
      kept.content = normal;       // also what decoding gives back
    }
    if (!added_ids.emplace(kept.content, kept.id).second)
      return corrupt_key(where, "'" + kept.content + "' is there twice");
    tokens[static_cast<size_t>(kept.id)] = {kept.content, kept.special};
    (kept.normalized ? normalized : raw).add(kept);
    any_normalized |= kept.normalized;
  }
  return {};
}

Status Tokenizer::Impl::read_template(const nlohmann::json& value, const std::string& where) {
  SLIM_ASSIGN(nlohmann::json single, member_of(value, "single", nlohmann::json::value_t::array, where));
  auto specials = value.find("special_tokens");
  bool behind = false;
  for (size_t i = 0; i < single.size(); ++i) {
    std::string at = where + ".single[" + std::to_string(i) + "]";
    if (!single[i].is_object()) return corrupt_key(at, "found " + shown(single[i]));
    if (single[i].contains("Sequence")) {
      if (behind) return corrupt_key(at, "a second Sequence");
      behind = true;
      continue;
    }
    auto special = single[i].find("SpecialToken");
    if (special == single[i].end()) return corrupt_key(at, "found " + shown(single[i]));
    SLIM_ASSIGN(std::string id, text_of(*special, "id", at + ".SpecialToken"));
    if (specials == value.end() || !specials->is_object() || !specials->contains(id) ||
        !(*specials)[id].is_object())
      return corrupt_key(where + ".special_tokens", "no entry for '" + id + "'");
    SLIM_ASSIGN(nlohmann::json ids, member_of((*specials)[id], "ids", nlohmann::json::value_t::array,
                                              where + ".special_tokens['" + id + "']"));
    for (const auto& n : ids) {
      if (!is_index(n, tokens.size()))
        return corrupt_key(where + ".special_tokens['" + id + "'].ids", "found " + shown(n));
      (behind ? suffix : prefix).push_back(n.get<int64_t>());
    }
  }
  if (!behind) return corrupt_key(where + ".single", "no Sequence");
  return {};
}

Status Tokenizer::Impl::read_post_processor() {
  SLIM_ASSIGN(const auto parts, components_of(part("post_processor"), "processors", "post_processor"));
  for (const TokenizerComponent& c : parts) {
    if (c.type == "ByteLevel") continue;  // moves offsets, no ids
    if (c.type != "TemplateProcessing")
      return unsupported_component(c, "Sequence, ByteLevel, TemplateProcessing");
    if (!prefix.empty() || !suffix.empty()) return corrupt_key(c.where, "a second TemplateProcessing");
    SLIM_TRY(read_template(*c.value, c.where));
  }
  return {};
}

Result<Tokenizer> Tokenizer::from_parts(TokenizerJson parts, const std::string& where) {
  auto impl = std::make_shared<Impl>();
  impl->json = std::move(parts);
  if (Status status = impl->read(); !status.ok()) return std::move(status).in(where);
  impl->json.rest = nullptr;
  impl->json.vocab = {};
  impl->json.merges = {};
  impl->json.scores = {};
  Tokenizer out;
  out.impl_ = std::move(impl);
  return out;
}

Result<Tokenizer> Tokenizer::from_json(std::string_view text, const std::string& where) {
  auto parsed = parse_tokenizer_json(text);
  if (!parsed.ok()) return parsed.status().in(where);
  return from_parts(*std::move(parsed), where);
}

Result<Tokenizer> Tokenizer::from_file(const std::string& path) {
  SLIM_ASSIGN(const std::string text, read_side_file(path));
  return from_json(text, path);
}

namespace {

bool is_missing(const Result<std::string>& file) {
  return !file.ok() && file.status().code() == Code::kNotFound;
}

Result<Tokenizer> made(Result<TokenizerJson> parts, const std::string& path) {
  if (!parts.ok()) return parts.status().in(path);
  return Tokenizer::from_parts(*std::move(parts), path);
}

}  // namespace

Result<Tokenizer> Tokenizer::from_folder(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  auto text = read_side_file(path);
  if (text.ok()) return from_json(*text, path);
  if (!is_missing(text)) return text.status();
  SLIM_ASSIGN(const TokenizerConfig config, read_tokenizer_config(folder));
  const std::string pieces = folder + "/tokenizer.model", vocab = folder + "/vocab.json";
  if (text = read_side_file(pieces); text.ok()) return made(sentencepiece_tokenizer(*text, config), pieces);
  if (!is_missing(text)) return text.status();
  if (text = read_side_file(vocab); text.ok()) {
    SLIM_ASSIGN(const std::string merges, read_side_file(folder + "/merges.txt"));
    return made(vocabulary_tokenizer(*text, merges, config), vocab);
  }
  if (!is_missing(text)) return text.status();
  for (const char* name : {"hy.tiktoken", "qwen.tiktoken"}) {
    const std::string ranks = folder + "/" + name;
    text = read_side_file(ranks);
    if (text.ok())
      return made(tiktoken_tokenizer(*text, name == std::string_view("hy.tiktoken"), config), ranks);
    if (!is_missing(text)) return text.status();
  }
  return Status(
      Code::kNotFound,
      folder +
          ": has no tokenizer; a model folder needs tokenizer.json, tokenizer.model, vocab.json with "
          "merges.txt, or hy.tiktoken. Runs without calibration data need none");
}

// ---- use --------------------------------------------------------------------------------------------------------------

Status Tokenizer::Impl::encode_word(std::string_view word, std::vector<int64_t>& ids) const {
  if (const auto* unigram = std::get_if<UnigramModel>(&model))
    return pre_tokenizer.gives_bytes() ? unigram->encode(in_byte_level_alphabet(word), ids)
                                       : unigram->encode(word, ids);
  const auto& pairs = std::get<BytePairModel>(model);
  pre_tokenizer.gives_bytes() ? pairs.encode_bytes(word, ids) : pairs.encode(word, ids);
  return {};
}

Status Tokenizer::Impl::encode_text(std::string_view text, bool first, std::vector<int64_t>& ids) const {
  PreTokenizer::Words words;
  SLIM_TRY(pre_tokenizer.split(text, first, words));
  for (const std::string_view word : words.views) SLIM_TRY(encode_word(word, ids));
  return {};
}

/// Text between the added tokens that are looked for before normalizing.
Status Tokenizer::Impl::encode_between(std::string_view text, bool first, std::vector<int64_t>& ids) const {
  SLIM_ASSIGN(const std::string normal, normalizer.apply(text));
  if (!any_normalized) return encode_text(normal, first, ids);
  std::vector<TextPiece> parts;
  normalized.split(normal, parts);
  for (const TextPiece& piece : parts) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
    } else {
      SLIM_TRY(encode_text(piece.text, first && piece.text.data() == normal.data(), ids));
    }
  }
  return {};
}

Result<std::vector<int64_t>> Tokenizer::encode(std::string_view text, bool add_special) const {
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = replace_invalid_utf8(text);
  const Impl& self = *impl_;
  std::vector<int64_t> ids;
  if (add_special) ids = self.prefix;
  std::vector<TextPiece> pieces;
  self.raw.split(text, pieces);
  for (const TextPiece& piece : pieces) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
    } else {
      SLIM_TRY(self.encode_between(piece.text, piece.text.data() == text.data(), ids));
    }
  }
  if (add_special) ids.insert(ids.end(), self.suffix.begin(), self.suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special) const {
  std::vector<std::string> tokens;
  for (const int64_t id : ids) {
    const std::string_view token = token_of(id);
    if (!token.empty() && !(skip_special && is_special(id))) tokens.emplace_back(token);
  }
  return impl_->decoder.decode(std::move(tokens));
}

int64_t Tokenizer::id_of(std::string_view token) const {
  auto it = impl_->added_ids.find(token);
  return it != impl_->added_ids.end() ? it->second : impl_->id_in_model(token);
}

std::string_view Tokenizer::token_of(int64_t id) const {
  return id >= 0 && id < vocab_size() ? impl_->tokens[static_cast<size_t>(id)].text : std::string_view();
}

bool Tokenizer::is_special(int64_t id) const {
  return id >= 0 && id < vocab_size() && impl_->tokens[static_cast<size_t>(id)].special;
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(impl_->tokens.size()); }

}  // namespace slim::model
