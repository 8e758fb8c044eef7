#include "common/text/tokenizer.hpp"
#include "input.h"

using slim::model::Tokenizer;

/// Any text through a tokenizer with a vocabulary of single bytes, a merge, and an added token.
namespace {

std::string tokenizer_json() {
  std::string vocab;
  int id = 0;
  const auto add = [&](const std::string& token) {
    vocab += (id ? ",\"" : "\"") + token + "\":" + std::to_string(id);
    ++id;
  };
  for (int c = 0x21; c < 0x7F; ++c)
    add(c == '"' || c == '\\' ? std::string("\\") + static_cast<char>(c)
                              : std::string(1, static_cast<char>(c)));
  for (int c = 0xA1; c < 0x144; ++c) {  // how byte-level BPE spells the bytes that are no printable ASCII
    if (c != 0xAD) add({static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))});
  }
  add("th");
  return R"({"added_tokens":[{"id":)" + std::to_string(id) +
         R"(,"content":"<|end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],)"
         R"("normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":)"
         R"("(?i:'s|'t|'re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},)"
         R"("behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}]},)"
         R"("post_processor":null,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" +
         vocab + R"(},"merges":["t h"]}})";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizer = Tokenizer::from_json(tokenizer_json(), "tokenizer.json");
  if (!tokenizer.ok()) std::fprintf(stderr, "%s\n", tokenizer.status().message().c_str());
  FUZZ_REQUIRE(tokenizer.ok());
  const auto ids = tokenizer->encode(slim::fuzz::text_of(data, size));
  if (!ids.ok()) return 0;
  const std::string text = tokenizer->decode(*ids, false);
  const auto again = tokenizer->encode(text);
  FUZZ_REQUIRE(again.ok());
  FUZZ_REQUIRE(tokenizer->decode(*again, false) == text);
  return 0;
}
