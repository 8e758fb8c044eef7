#include "common/text/tokenizer.hpp"
#include "input.h"

using slim::model::Tokenizer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokenizer = Tokenizer::from_json(slim::fuzz::text_of(data, size), "tokenizer.json");
  if (!tokenizer.ok()) return 0;
  constexpr std::string_view kText =
      "The cat's 12 caf\xC3\xA9s,\n\n  <|im_end|> \xE4\xBD\xA0\xE5\xA5\xBD \xFF!";
  const auto ids = tokenizer->encode(kText);
  if (!ids.ok()) return 0;
  for (const int64_t id : *ids) FUZZ_REQUIRE(id >= 0 && id < tokenizer->vocab_size());
  (void)tokenizer->decode(*ids);
  (void)tokenizer->decode(*ids, false);
  return 0;
}
