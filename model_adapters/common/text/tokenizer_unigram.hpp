#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/text/tokenizer_json.hpp"
#include "slim/status.hpp"

namespace slim::model {

/// The most likely segmentation of a text into pieces (Kudo 2018), as sentencepiece and the tokenizers library find it: Viterbi over all
/// pieces, an unknown character at 10 below the least score. Immutable after create().
class UnigramModel {
 public:
  /// Takes vocab with its scores and the other keys of /model. Errors name the key (kCorrupt, kUnsupported). Keeps views into
  /// `json.strings`, which must stay where it is.
  static Result<UnigramModel> create(const TokenizerJson& json);

  /// Appends the ids of one word of valid UTF-8. Error: an unknown character, and the file names no unknown token (kInvalidArgument).
  Status encode(std::string_view word, std::vector<int64_t>& ids) const;

  /// -1 if the vocabulary has no such token.
  int32_t id_of(std::string_view token) const;

 private:
  struct Node {
    double score = 0;         ///< of the best way to here
    size_t begin = SIZE_MAX;  ///< where its last piece begins; SIZE_MAX: no way yet
    int32_t id = -1;
  };
  void extend(std::string_view word, size_t begin, std::vector<Node>& nodes) const;
  void append(std::string_view piece, std::vector<int64_t>& ids) const;

  std::unordered_map<std::string_view, int32_t> tokens_;
  std::unordered_map<uint64_t, uint32_t> trie_;  ///< (node, byte) to node
  std::vector<int32_t> ends_;                    ///< by node of the trie: the piece that ends there, or -1
  std::vector<double> scores_;
  std::array<int32_t, 256> fallback_ids_{};
  bool byte_fallback_ = false;
  int32_t unknown_id_ = -1;
  double unknown_score_ = 0;
};

}  // namespace slim::model
