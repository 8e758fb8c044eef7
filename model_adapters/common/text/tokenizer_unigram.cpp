#include "common/text/tokenizer_unigram.hpp"

#include <algorithm>

#include "common/text/tokenizer_component.hpp"
#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

/// How far an unknown character lies below the least likely piece (sentencepiece's kUnkPenalty).
constexpr double kUnknownPenalty = 10.0;

uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

}  // namespace

Result<UnigramModel> UnigramModel::create(const TokenizerJson& json) {
  const nlohmann::json& model = json.rest.at("model");
  if (json.vocab.empty() || json.scores.size() != json.vocab.size())
    return corrupt_key("model.vocab", "expected a list of texts with scores");
  UnigramModel out;
  out.scores_ = json.scores;
  out.ends_ = {-1};
  for (const auto& entry : json.vocab) {
    const std::string_view token = json.text(entry.token);
    out.tokens_[token] = static_cast<int32_t>(entry.id);  // the last of equals, as the tokenizers library
    uint32_t node = 0;
    for (const char byte : token) {
      const auto [found, added] =
          out.trie_.emplace(edge(node, byte), static_cast<uint32_t>(out.ends_.size()));
      if (added) out.ends_.push_back(-1);
      node = found->second;
    }
    if (node != 0) out.ends_[node] = static_cast<int32_t>(entry.id);
  }
  SLIM_ASSIGN(out.byte_fallback_, flag_of(model, "byte_fallback", false, "model"));
  static constexpr char kHex[] = "0123456789ABCDEF";
  for (size_t b = 0; b < 256; ++b)
    out.fallback_ids_[b] = out.id_of(std::string("<0x") + kHex[b / 16] + kHex[b % 16] + ">");
  if (const auto unknown = model.find("unk_id"); unknown != model.end() && !unknown->is_null()) {
    if (!is_index(*unknown, json.vocab.size()))
      return corrupt_key("model.unk_id", "found " + shown(*unknown) + ", expected an index of model.vocab");
    out.unknown_id_ = unknown->get<int32_t>();
  }
  out.unknown_score_ = *std::min_element(json.scores.begin(), json.scores.end()) - kUnknownPenalty;
  return out;
}

int32_t UnigramModel::id_of(std::string_view token) const {
  const auto found = tokens_.find(token);
  return found == tokens_.end() ? -1 : found->second;
}

/// Tries every piece that begins at word[begin]; a character that is no piece is unknown.
void UnigramModel::extend(std::string_view word, size_t begin, std::vector<Node>& nodes) const {
  const double before = nodes[begin].score;
  const auto offer = [&](size_t end, double score, int32_t id) {
    Node& node = nodes[end];
    if (node.begin == SIZE_MAX || score > node.score) node = {score, begin, id};
  };
  size_t character = begin;
  next_code_point(word, character);
  bool single = false;
  uint32_t node = 0;
  for (size_t end = begin; end < word.size();) {
    const auto next = trie_.find(edge(node, word[end++]));
    if (next == trie_.end()) break;
    node = next->second;
    if (ends_[node] < 0) continue;
    offer(end, before + scores_[static_cast<size_t>(ends_[node])], ends_[node]);
    single |= end == character;
  }
  if (!single) offer(character, before + unknown_score_, unknown_id_);
}

void UnigramModel::append(std::string_view piece, std::vector<int64_t>& ids) const {
  const auto byte_id = [&](char c) { return fallback_ids_[static_cast<uint8_t>(c)]; };
  if (const int32_t id = id_of(piece); id >= 0) {
    ids.push_back(id);
  } else if (byte_fallback_ &&
             std::all_of(piece.begin(), piece.end(), [&](char c) { return byte_id(c) >= 0; })) {
    for (const char c : piece) ids.push_back(byte_id(c));
  } else {
    ids.push_back(unknown_id_);
  }
}

Status UnigramModel::encode(std::string_view word, std::vector<int64_t>& ids) const {
  std::vector<Node> nodes(word.size() + 1);
  for (size_t begin = 0; begin < word.size(); next_code_point(word, begin)) extend(word, begin, nodes);
  std::vector<std::string_view>
      pieces;  // from the last to the first; unknown characters next to each other are one
  bool unknown = false;
  for (size_t end = word.size(); end > 0; end = nodes[end].begin) {
    const Node& node = nodes[end];
    if (node.id < 0)
      return {
          Code::kInvalidArgument,
          "the text has a character that the tokenizer does not know, and tokenizer.json names no unk_id"};
    const bool again = unknown && node.id == unknown_id_;
    unknown = node.id == unknown_id_;
    if (again) {
      pieces.back() = word.substr(node.begin, pieces.back().size() + end - node.begin);
    } else {
      pieces.push_back(word.substr(node.begin, end - node.begin));
    }
  }
  for (size_t i = pieces.size(); i-- > 0;) append(pieces[i], ids);
  return {};
}

}  // namespace slim::model
