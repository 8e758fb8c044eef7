#include "common/text/foreign_tokenizers.hpp"
#include "common/text/tokenizer.hpp"
#include "input.h"

using namespace slim::model;

/// The kinds of tokenizer files that are made into a tokenizer.json; the first byte chooses.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(slim::fuzz::text_of(data + 1, size - 1));
  TokenizerConfig config;
  config.values["legacy"] = (data[0] & 4) != 0;
  const size_t half = text.size() / 2;
  auto parts = data[0] % 4 == 0   ? sentencepiece_tokenizer(text, config)
               : data[0] % 4 == 1 ? tiktoken_tokenizer(text, (data[0] & 8) != 0, config)
                                  : vocabulary_tokenizer(text.substr(0, half), text.substr(half), config);
  if (!parts.ok()) return 0;
  const auto tokenizer = Tokenizer::from_parts(*std::move(parts), "tokenizer");
  if (!tokenizer.ok()) return 0;
  const auto ids = tokenizer->encode("The cat's 12 caf\xC3\xA9s,\n\n \xE4\xBD\xA0\xE5\xA5\xBD!");
  if (!ids.ok()) return 0;
  for (const int64_t id : *ids) FUZZ_REQUIRE(id >= 0 && id < tokenizer->vocab_size());
  (void)tokenizer->decode(*ids);
  return 0;
}
