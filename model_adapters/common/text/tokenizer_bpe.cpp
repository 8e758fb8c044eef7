#include "common/text/tokenizer_bpe.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>

#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

uint32_t hash_of(std::string_view s) { return static_cast<uint32_t>(std::hash<std::string_view>{}(s)); }
size_t table_size(size_t count) { return std::bit_ceil(count * 2 + 2); }
Status corrupt(const std::string& what) { return Status(Code::kCorrupt, what); }

}  // namespace

const std::array<std::string, 256>& byte_level_alphabet() {
  static const auto kAlphabet = [] {
    std::array<std::string, 256> out;
    char32_t next = 0x100;
    for (char32_t b = 0; b < 256; ++b) {
      bool printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
      append_utf8(printable ? b : next++, out[b]);
    }
    return out;
  }();
  return kAlphabet;
}

std::string in_byte_level_alphabet(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += byte_level_alphabet()[static_cast<uint8_t>(c)];
  return out;
}

// ---- indexes ----------------------------------------------------------------------------------------------------------

void BytePairModel::StringIndex::reserve(size_t count) { slots_.assign(table_size(count), {}); }

bool BytePairModel::StringIndex::insert(std::string_view key, int32_t value) {
  uint32_t hash = hash_of(key);
  size_t i = start(hash);
  for (; slots_[i].value >= 0; i = (i + 1) & (slots_.size() - 1))
    if (slots_[i].hash == hash && slots_[i].key == key) return false;
  slots_[i] = {key, hash, value};
  return true;
}

int32_t BytePairModel::StringIndex::find(std::string_view key) const {
  uint32_t hash = hash_of(key);
  for (size_t i = start(hash); slots_[i].value >= 0; i = (i + 1) & (slots_.size() - 1))
    if (slots_[i].hash == hash && slots_[i].key == key) return slots_[i].value;
  return -1;
}

void BytePairModel::MergeIndex::reserve(size_t count) {
  slots_.assign(table_size(count), {});
  shift_ = 64 - std::countr_zero(slots_.size());
}

size_t BytePairModel::MergeIndex::slot_of(uint64_t key) const {
  size_t i = (key * 0x9E3779B97F4A7C15u) >> shift_;  // multiplicative hashing, Knuth vol. 3, 6.4
  while (slots_[i].key != UINT64_MAX && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
  return i;
}

void BytePairModel::MergeIndex::insert(int32_t left, int32_t right, Merge merge) {
  uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  slots_[slot_of(key)] = {key, merge};
}

BytePairModel::Merge BytePairModel::MergeIndex::find(int32_t left, int32_t right) const {
  return slots_[slot_of(static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right))].merge;
}

// ---- reading ----------------------------------------------------------------------------------------------------------

Status BytePairModel::read_options(const nlohmann::json& model) {
  for (const auto& [key, value] : model.items()) {
    auto refuse = [&, k = &key, v = &value](const char* expected) {
      return Status(Code::kUnsupported,
                    "model." + *k + ": found " +
                        v->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
                        ", supported is " + expected);
    };
    bool none = value.is_null() || value == "";
    if (key == "type") {
      if (value != "BPE") return refuse("\"BPE\"");
    } else if (key == "dropout") {
      if (!value.is_null() && value != 0) return refuse("null");
    } else if (key == "continuing_subword_prefix" || key == "end_of_word_suffix") {
      if (!none) return refuse("none");
    } else if (key == "byte_fallback") {
      if (!value.is_boolean()) return refuse("true or false");
      byte_fallback_ = value.get<bool>();
    } else if (key == "ignore_merges") {
      if (!value.is_boolean()) return refuse("true or false");
      ignore_merges_ = value.get<bool>();
    } else if (key == "unk_token") {
      if (!value.is_null() && !value.is_string()) return refuse("null or a token");
      if (value.is_string()) unknown_token_ = value.get<std::string>();
    } else if (key == "fuse_unk") {
      if (!value.is_boolean()) return refuse("true or false");
      fuse_unknown_ = value.get<bool>();
    } else if (key != "vocab" && key != "merges") {
      return refuse("no such key");
    }
  }
  return {};
}

Status BytePairModel::read_vocab(const TokenizerJson& json) {
  if (json.vocab.empty()) return corrupt("model.vocab: missing or empty");
  tokens_.reserve(json.vocab.size());
  std::vector<bool> seen(kMaxVocabulary);
  for (const auto& entry : json.vocab) {
    std::string_view token = json.text(entry.token);
    auto id = static_cast<size_t>(entry.id);
    bool again = seen[id];
    seen[id] = true;
    if (again)
      return corrupt("model.vocab['" + std::string(token) + "']: id " + std::to_string(id) +
                     " is there twice");
    if (!tokens_.insert(token, static_cast<int32_t>(entry.id)))
      return corrupt("model.vocab['" + std::string(token) + "'] is there twice");
  }
  static constexpr char kHex[] = "0123456789ABCDEF";
  for (size_t b = 0; b < 256; ++b) {
    byte_ids_[b] = tokens_.find(byte_level_alphabet()[b]);
    fallback_ids_[b] = tokens_.find(std::string("<0x") + kHex[b / 16] + kHex[b % 16] + ">");
  }
  unknown_id_ = unknown_token_.empty() ? -1 : tokens_.find(unknown_token_);
  return check_unknown();
}

/// The unknown token of most files is never used: every byte that a text can hold has a token.
Status BytePairModel::check_unknown() const {
  if (unknown_token_.empty() || unknown_id_ >= 0) return {};
  const auto complete = [](const std::array<int32_t, 256>& ids) {
    for (size_t b = 0; b < 256; ++b) {
      const bool in_utf8 = b != 0xC0 && b != 0xC1 && b < 0xF5;
      if (in_utf8 && ids[b] < 0) return false;
    }
    return true;
  };
  if (complete(byte_ids_) || (byte_fallback_ && complete(fallback_ids_))) return {};
  return corrupt("model.unk_token: '" + unknown_token_ + "' is not in model.vocab");
}

Status BytePairModel::read_merges(const TokenizerJson& json) {
  merges_.reserve(json.merges.size());
  std::string merged;
  for (size_t i = 0; i < json.merges.size(); ++i) {
    std::string_view left = json.text(json.merges[i].first), right = json.text(json.merges[i].second);
    merged.assign(left).append(right);
    int32_t ids[3] = {tokens_.find(left), tokens_.find(right), tokens_.find(merged)};
    for (int part = 0; part < 3; ++part)
      if (ids[part] < 0)
        return corrupt("model.merges[" + std::to_string(i) + "]: '" +
                       std::string(part == 0   ? left
                                   : part == 1 ? right
                                               : std::string_view(merged)) +
                       "' is not in model.vocab");
    merges_.insert(ids[0], ids[1], {static_cast<uint32_t>(i), ids[2]});
  }
  return {};
}

Result<BytePairModel> BytePairModel::create(const TokenizerJson& json) {
  auto model = json.rest.find("model");
  if (model == json.rest.end() || !model->is_object()) return corrupt("model: missing or not an object");
  BytePairModel out;
  SLIM_TRY(out.read_options(*model));
  SLIM_TRY(out.read_vocab(json));
  SLIM_TRY(out.read_merges(json));
  return out;
}

// ---- merging ----------------------------------------------------------------------------------------------------------

/// Rescans all pairs after each merge: quadratic, and fastest for the words of real text.
void BytePairModel::merge_short(std::vector<int32_t>& symbols) const {
  while (symbols.size() > 1) {
    Merge best;
    size_t at = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i)
      if (Merge m = merges_.find(symbols[i], symbols[i + 1]); m.rank < best.rank) best = m, at = i;
    if (best.id < 0) return;
    symbols[at] = best.id;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(at) + 1);
  }
}

/// A queue of candidate merges, lowest rank first and leftmost among equals, over a doubly linked list of symbols.
void BytePairModel::merge_long(std::vector<int32_t>& symbols) const {
  struct Candidate {
    uint32_t rank;
    int32_t left, id, left_symbol, right_symbol;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
  };
  auto n = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> previous(symbols.size()), next(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  auto consider = [&](int32_t left) {
    if (left < 0 || next[left] >= n) return;
    int32_t a = symbols[left], b = symbols[next[left]];
    if (Merge m = merges_.find(a, b); m.id >= 0) queue.push({m.rank, left, m.id, a, b});
  };
  for (int32_t i = 0; i < n; ++i) previous[i] = i - 1, next[i] = i + 1;
  for (int32_t i = 0; i + 1 < n; ++i) consider(i);
  while (!queue.empty()) {
    Candidate c = queue.top();
    queue.pop();
    int32_t right = next[c.left];
    if (symbols[c.left] != c.left_symbol || right >= n || symbols[right] != c.right_symbol)
      continue;  // outdated
    symbols[c.left] = c.id;
    symbols[right] = -1;
    next[c.left] = next[right];
    if (next[right] < n) previous[next[right]] = c.left;
    consider(previous[c.left]);
    consider(c.left);
  }
  std::erase(symbols, -1);
}

void BytePairModel::add_known(int32_t id, Symbols& symbols) const {
  if (symbols.unknown) symbols.ids.push_back(unknown_id_);
  symbols.unknown = false;
  symbols.ids.push_back(id);
}

/// Its bytes, the unknown token, or nothing, as the tokenizers library does; an unknown character that waits is not written before bytes.
void BytePairModel::add_unknown(std::string_view character, Symbols& symbols) const {
  const auto byte_id = [&](char c) { return fallback_ids_[static_cast<uint8_t>(c)]; };
  if (byte_fallback_ &&
      std::all_of(character.begin(), character.end(), [&](char c) { return byte_id(c) >= 0; })) {
    for (const char c : character) symbols.ids.push_back(byte_id(c));
    return;
  }
  if (unknown_id_ < 0) return;
  if (symbols.unknown && !fuse_unknown_) symbols.ids.push_back(unknown_id_);
  symbols.unknown = true;
}

void BytePairModel::merge(Symbols symbols, std::vector<int64_t>& ids) const {
  if (symbols.unknown) symbols.ids.push_back(unknown_id_);
  constexpr size_t kShort = 48;
  symbols.ids.size() <= kShort ? merge_short(symbols.ids) : merge_long(symbols.ids);
  ids.insert(ids.end(), symbols.ids.begin(), symbols.ids.end());
}

void BytePairModel::encode(std::string_view word, std::vector<int64_t>& ids) const {
  if (ignore_merges_) {
    if (const int32_t id = tokens_.find(word); id >= 0) return ids.push_back(id);
  }
  Symbols symbols;
  for (size_t i = 0; i < word.size();) {
    const size_t begin = i;
    next_code_point(word, i);
    const std::string_view character = word.substr(begin, i - begin);
    const int32_t id = tokens_.find(character);
    id >= 0 ? add_known(id, symbols) : add_unknown(character, symbols);
  }
  merge(std::move(symbols), ids);
}

void BytePairModel::encode_bytes(std::string_view word, std::vector<int64_t>& ids) const {
  if (ignore_merges_) {
    if (const int32_t id = tokens_.find(in_byte_level_alphabet(word)); id >= 0) return ids.push_back(id);
  }
  Symbols symbols;
  symbols.ids.reserve(word.size());
  for (const char c : word) {
    const auto byte = static_cast<uint8_t>(c);
    byte_ids_[byte] >= 0 ? add_known(byte_ids_[byte], symbols)
                         : add_unknown(byte_level_alphabet()[byte], symbols);
  }
  merge(std::move(symbols), ids);
}

}  // namespace slim::model
