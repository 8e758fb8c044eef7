#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/text/tokenizer_json.hpp"
#include "slim/status.hpp"

namespace slim::model {

/// The string of a byte in byte-level vocabularies: itself if printable Latin-1, else a character from U+0100 on.
const std::array<std::string, 256>& byte_level_alphabet();

/// Spells bytes with the characters of that alphabet.
std::string in_byte_level_alphabet(std::string_view bytes);

/// Byte-pair merges (Sennrich et al. 2016) over a vocabulary of characters, with the bytes of unknown ones in it or not (sentencepiece's
/// byte fallback), or over one in the byte alphabet of GPT-2. Immutable after create().
class BytePairModel {
 public:
  /// Takes vocab, merges and the other keys of /model. Errors name the key: options that are not supported, ids
  /// twice, merges of unknown tokens, an unknown token that is wanted and not in the vocabulary. Keeps views into `json.strings`,
  /// which must stay where it is.
  static Result<BytePairModel> create(const TokenizerJson& json);

  /// Appends the ids of one word of valid UTF-8 to `ids`; its characters are tokens.
  void encode(std::string_view word, std::vector<int64_t>& ids) const;
  /// The same of a word whose bytes are tokens, spelled in the byte-level alphabet.
  void encode_bytes(std::string_view word, std::vector<int64_t>& ids) const;

  /// -1 if the vocabulary has no such token.
  int32_t id_of(std::string_view token) const { return tokens_.find(token); }

 private:
  /// Open-addressing index of strings held elsewhere: twice as fast to fill as std::unordered_map, which decides the load time.
  class StringIndex {
   public:
    void reserve(size_t count);
    /// False if the string is there already.
    bool insert(std::string_view key, int32_t value);
    int32_t find(std::string_view key) const;

   private:
    struct Slot {
      std::string_view key;
      uint32_t hash = 0;
      int32_t value = -1;
    };
    size_t start(uint32_t hash) const { return hash & (slots_.size() - 1); }
    std::vector<Slot> slots_;
  };
  struct Merge {
    uint32_t rank = UINT32_MAX;  ///< UINT32_MAX: no such merge
    int32_t id = -1;
  };
  /// Open-addressing map from a pair of ids to its merge.
  class MergeIndex {
   public:
    void reserve(size_t count);
    void insert(int32_t left, int32_t right, Merge merge);
    Merge find(int32_t left, int32_t right) const;

   private:
    struct Slot {
      uint64_t key = UINT64_MAX;
      Merge merge;
    };
    size_t slot_of(uint64_t key) const;
    std::vector<Slot> slots_;
    int shift_ = 0;
  };

  /// Gathers the first symbols of a word. Unknown characters next to each other may become one token.
  struct Symbols {
    std::vector<int32_t> ids;
    bool unknown = false;  ///< one waits to be written
  };

  Status read_options(const nlohmann::json& model);
  Status check_unknown() const;
  void add_known(int32_t id, Symbols& symbols) const;
  void add_unknown(std::string_view character, Symbols& symbols) const;
  void merge(Symbols symbols, std::vector<int64_t>& ids) const;
  Status read_vocab(const TokenizerJson& json);
  Status read_merges(const TokenizerJson& json);
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  StringIndex tokens_;
  MergeIndex merges_;
  std::array<int32_t, 256> byte_ids_{};  ///< of the byte-level alphabet; -1: not in the vocabulary
  std::array<int32_t, 256>
      fallback_ids_{};  ///< of "<0x00>" to "<0xFF>", which stand for the bytes of unknown characters
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  bool fuse_unknown_ = false;
  std::string unknown_token_;
  int32_t unknown_id_ = -1;
};

}  // namespace slim::model
