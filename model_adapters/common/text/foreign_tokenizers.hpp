#pragma once
#include <string>
#include <string_view>

#include "common/text/tokenizer_json.hpp"
#include "slim/status.hpp"

namespace slim::model {

/// Bytes of the longest token that is looked at: every way to cut it into two is tried.
constexpr size_t kLongestToken = 1024;

/// What tokenizer_config.json (and, in old folders, added_tokens.json) says of a tokenizer that is stored without tokenizer.json.
struct TokenizerConfig {
  nlohmann::json values = nlohmann::json::object();  ///< tokenizer_config.json; empty where there is none
  nlohmann::json added = nlohmann::json::array();    ///< its added tokens, as tokenizer.json has them
};

/// Reads it; files that are not there count as empty. Errors: kCorrupt, kIo.
Result<TokenizerConfig> read_tokenizer_config(const std::string& folder);

/// Turns a sentencepiece model (tokenizer.model: pairs or unigrams, byte fallback) into what tokenizer.json would say, as transformers'
/// Llama class does. Errors: kCorrupt; kUnsupported for words, characters, and for a normalization table.
Result<TokenizerJson> sentencepiece_tokenizer(std::string_view model, const TokenizerConfig& config);

/// Turns vocab.json and merges.txt into what tokenizer.json would say, for the classes Qwen2Tokenizer and GPT2Tokenizer. Errors: kCorrupt;
/// kUnsupported for another class.
Result<TokenizerJson> vocabulary_tokenizer(std::string_view vocab, std::string_view merges,
                                           const TokenizerConfig& config);

/// Turns a tiktoken file (a token in base64 and its rank a line) into what tokenizer.json would say. `hunyuan`: with the special tokens of
/// Hunyuan's own class behind the ranks, else those of `config`. Error: kCorrupt.
Result<TokenizerJson> tiktoken_tokenizer(std::string_view ranks, bool hunyuan, const TokenizerConfig& config);

}  // namespace slim::model
