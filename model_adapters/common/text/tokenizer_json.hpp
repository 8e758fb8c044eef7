#pragma once
#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "slim/status.hpp"

namespace slim::model {

/// Ids are smaller: a wrong file must not make us allocate without bound.
constexpr int64_t kMaxVocabulary = int64_t{1} << 24;

/// A tokenizer.json in parts: the two long lists in flat memory (a document object model of them takes most of the load
/// time), everything else as a JSON value.
struct TokenizerJson {
  std::string strings;  ///< all strings of vocab and merges, one after the other
  struct Span {
    uint32_t offset, size;
  };
  struct VocabEntry {
    Span token;
    int64_t id;
  };
  std::vector<VocabEntry> vocab;  ///< /model/vocab in file order
  std::vector<double>
      scores;  ///< of each entry, where vocab is a list of pairs (Unigram); its ids count up from 0
  std::vector<std::pair<Span, Span>> merges;  ///< /model/merges in file order
  nlohmann::json rest;                        ///< the document with empty vocab and merges

  std::string_view text(Span s) const { return std::string_view(strings).substr(s.offset, s.size); }
};

/// Appends a string to those of `json`.
TokenizerJson::Span store(TokenizerJson& json, std::string_view text);

/// Errors (kCorrupt) name the key and, for broken JSON, the offset: wrong types, merges that are not two parts, nesting
/// deeper than 64, duplicate keys, a document over 2 GiB.
Result<TokenizerJson> parse_tokenizer_json(std::string_view text);

}  // namespace slim::model
