#include <algorithm>
#include <map>

#include "common/text/foreign_tokenizers.hpp"
#include "common/text/tokenizer_component.hpp"
#include "common/text/wire_reader.hpp"

namespace slim::model {
namespace {

using nlohmann::json;

constexpr const char* kMark = "\xE2\x96\x81";  // U+2581, where a space was

// sentencepiece_model.proto: numbers of fields and values of enums.
enum PieceType : uint64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};
constexpr uint64_t kUnigramModel = 1, kPairModel = 2;

struct Piece {
  std::string_view text;
  float score = 0;
  uint64_t type = kNormal;
};

struct SentencePieces {
  std::vector<Piece> pieces;
  uint64_t model_type = kUnigramModel;
  bool byte_fallback = false;
  bool has_table = false;  ///< of characters that are normalized
  bool add_prefix = true;
  bool squeeze = true;  ///< spaces at the ends and next to each other are left out
};

Status damaged() { return Status(Code::kCorrupt, "not a whole sentencepiece model"); }

Result<Piece> read_piece(std::string_view bytes) {
  Piece piece;
  WireReader reader(bytes);
  while (reader.next()) {
    if (reader.field() == 1) piece.text = reader.text();
    if (reader.field() == 2) piece.score = reader.real();
    if (reader.field() == 3) piece.type = reader.number();
  }
  if (reader.broken() || piece.text.empty() || piece.text.size() > kLongestToken) return damaged();
  return piece;
}

Status read_trainer(std::string_view bytes, SentencePieces& out) {
  WireReader reader(bytes);
  while (reader.next()) {
    if (reader.field() == 3) out.model_type = reader.number();
    if (reader.field() == 35) out.byte_fallback = reader.number() != 0;
  }
  return reader.broken() ? damaged() : Status{};
}

Status read_normalizer(std::string_view bytes, SentencePieces& out) {
  WireReader reader(bytes);
  while (reader.next()) {
    if (reader.field() == 2) out.has_table = !reader.text().empty();
    if (reader.field() == 3) out.add_prefix = reader.number() != 0;
    if (reader.field() == 4) out.squeeze = reader.number() != 0;
  }
  return reader.broken() ? damaged() : Status{};
}

Result<SentencePieces> read_model(std::string_view bytes) {
  SentencePieces out;
  WireReader reader(bytes);
  while (reader.next()) {
    if (reader.field() == 1) {
      SLIM_ASSIGN(const Piece piece, read_piece(reader.text()));
      out.pieces.push_back(piece);
    }
    if (reader.field() == 2) SLIM_TRY(read_trainer(reader.text(), out));
    if (reader.field() == 3) SLIM_TRY(read_normalizer(reader.text(), out));
  }
  if (reader.broken() || out.pieces.empty() || out.pieces.size() >= static_cast<size_t>(kMaxVocabulary))
    return damaged();
  if (out.model_type != kUnigramModel && out.model_type != kPairModel)
    return Status(Code::kUnsupported, "its model type is " + std::to_string(out.model_type) +
                                          "; pairs (2) and unigrams (1) are supported");
  if (out.has_table || out.squeeze)
    return Status(Code::kUnsupported,
                  "it normalizes text (" + std::string(out.has_table ? "by a table" : "spaces are squeezed") +
                      "), which is supported in tokenizer.json alone; save the tokenizer once with "
                      "transformers' save_pretrained, which writes that file");
  return out;
}

/// sentencepiece merges whatever gives the best piece; each way to make a piece of two is a merge, the best pieces first.
void add_merges(const SentencePieces& model, TokenizerJson& out) {
  std::map<std::string_view, size_t> known;  // by text
  std::vector<size_t> order;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].type != kNormal) continue;
    known.emplace(model.pieces[i].text, i);
    order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return model.pieces[a].score > model.pieces[b].score; });
  for (const size_t i : order) {
    const std::string_view text = model.pieces[i].text;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = known.find(text.substr(0, cut)), right = known.find(text.substr(cut));
      if (left == known.end() || right == known.end()) continue;
      out.merges.emplace_back(out.vocab[left->second].token, out.vocab[right->second].token);
    }
  }
}

json model_of(const SentencePieces& model) {
  json unknown;
  for (size_t i = 0; i < model.pieces.size(); ++i)
    if (model.pieces[i].type == kUnknown) unknown = i;
  json out = {{"byte_fallback", model.byte_fallback}};
  if (model.model_type == kUnigramModel) {
    out["type"] = "Unigram";
    out["unk_id"] = unknown;
  } else {
    out["type"] = "BPE";
    out["fuse_unk"] = true;
    if (!unknown.is_null()) out["unk_token"] = model.pieces[unknown.get<size_t>()].text;
  }
  return out;
}

json added_tokens_of(const SentencePieces& model, const json& more) {
  json out = json::array();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const bool user = model.pieces[i].type == kUserDefined;
    if (!user && model.pieces[i].type != kUnknown && model.pieces[i].type != kControl) continue;
    out.push_back({{"id", i}, {"content", model.pieces[i].text}, {"special", !user}, {"normalized", false}});
  }
  for (const json& token : more) {
    const auto same =
        std::find_if(out.begin(), out.end(), [&](const json& t) { return t["id"] == token["id"]; });
    same == out.end() ? out.push_back(token) : void(*same = token);
  }
  return out;
}

/// The token of tokenizer_config.json, or `fallback`.
std::string token_of(const json& config, const char* key, const char* fallback) {
  const json value = config.value(key, json(fallback));
  const json content = value.is_object() ? value.value("content", json(fallback)) : value;
  return content.is_string() ? content.get<std::string>() : fallback;
}

/// <s> before the text and </s> behind it, as tokenizer_config.json asks.
json post_processor_of(const json& config, const json& added) {
  json single = json::array(), specials = json::object();
  const auto add = [&](const std::string& token) {
    for (const json& entry : added) {
      if (entry["content"] != token) continue;
      single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
      specials[token] = {{"id", token}, {"ids", {entry["id"]}}, {"tokens", {token}}};
    }
  };
  if (config.value("add_bos_token", json(true)) == true) add(token_of(config, "bos_token", "<s>"));
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (config.value("add_eos_token", json(false)) == true) add(token_of(config, "eos_token", "</s>"));
  return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", specials}};
}

json decoder_of(bool add_prefix) {
  json steps = {{{"type", "Replace"}, {"pattern", {{"String", kMark}}}, {"content", " "}},
                {{"type", "ByteFallback"}},
                {{"type", "Fuse"}}};
  if (add_prefix) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", steps}};
}

/// Spaces become marks, in each stretch between special tokens; in files that are not "legacy" only the first gets one before it.
void set_spaces(const SentencePieces& model, const json& config, json& out) {
  if (config.value("legacy", json(true)) == false) {
    out["pre_tokenizer"] = {{"type", "Metaspace"},
                            {"replacement", kMark},
                            {"prepend_scheme", model.add_prefix ? "first" : "never"},
                            {"split", false}};
    return;
  }
  json steps = json::array();
  if (model.add_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kMark}});
  steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMark}});
  out["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
}

}  // namespace

Result<TokenizerJson> sentencepiece_tokenizer(std::string_view bytes, const TokenizerConfig& config) {
  SLIM_ASSIGN(const SentencePieces model, read_model(bytes));
  TokenizerJson out;
  for (const Piece& piece : model.pieces) {
    out.vocab.push_back({store(out, piece.text), static_cast<int64_t>(out.vocab.size())});
    if (model.model_type == kUnigramModel) out.scores.push_back(piece.score);
  }
  if (model.model_type == kPairModel) add_merges(model, out);
  out.rest = {{"model", model_of(model)}, {"decoder", decoder_of(model.add_prefix)}};
  out.rest["added_tokens"] = added_tokens_of(model, config.added);
  out.rest["post_processor"] = post_processor_of(config.values, out.rest["added_tokens"]);
  set_spaces(model, config.values, out.rest);
  return out;
}

}  // namespace slim::model
