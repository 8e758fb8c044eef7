#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slim/status.hpp"

namespace slim::model {

struct TokenizerJson;

/// Tokenizer of a model folder (byte pairs over bytes or characters, or unigrams); ids and texts equal those of the Hugging Face
/// tokenizers library.
/// Immutable; copies share everything and may be used from any thread.
class Tokenizer {
 public:
  /// Opens the tokenizer of a model folder: tokenizer.json, else tokenizer.model (sentencepiece), vocab.json with merges.txt, or a
  /// tiktoken file of Hunyuan's or Qwen's. Errors: those of from_file; kNotFound where the folder has none of them.
  static Result<Tokenizer> from_folder(const std::string& folder);
  /// Errors name file and key: broken JSON, wrong types, ids out of range or there twice (kCorrupt); a normalizer,
  /// pre-tokenizer, post-processor, decoder or model option that is not supported (kUnsupported).
  static Result<Tokenizer> from_file(const std::string& path);
  /// `where` leads every message.
  static Result<Tokenizer> from_json(std::string_view json, const std::string& where);
  /// From the parts of such a file, which other kinds of files are made into.
  static Result<Tokenizer> from_parts(TokenizerJson parts, const std::string& where);

  /// Token ids of a text. Added and special tokens inside the text are recognised; `add_special` puts around it what the
  /// post-processor asks for (nothing in most files). Invalid UTF-8 is read as Python's errors="replace" does.
  /// Errors: a pattern that gives up on this text, or an unknown character where a Unigram file names no unknown token.
  Result<std::vector<int64_t>> encode(std::string_view text, bool add_special = true) const;

  /// Text of token ids; ids without token are left out, bytes that are no UTF-8 become U+FFFD.
  std::string decode(std::span<const int64_t> ids, bool skip_special = true) const;

  /// -1 if there is none. Tokens are spelled as in the file ("Ġthe", "<|im_end|>").
  int64_t id_of(std::string_view token) const;
  /// Empty if there is none.
  std::string_view token_of(int64_t id) const;
  bool is_special(int64_t id) const;
  /// One more than the largest id, added tokens included.
  int64_t vocab_size() const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace slim::model
