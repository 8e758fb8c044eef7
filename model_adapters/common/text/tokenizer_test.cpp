#include "common/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "common/text/tokenizer_bpe.hpp"
#include "common/text/tokenizer_regex.hpp"
#include "common/text/unicode.hpp"

using namespace slim;
using namespace slim::model;
using nlohmann::json;

namespace {

using Ids = std::vector<int64_t>;

/// All bytes with their value as id, then "ab" = 256 and "abab" = 257.
json small() {
  json vocab;
  for (int b = 0; b < 256; ++b) vocab[byte_level_alphabet()[static_cast<size_t>(b)]] = b;
  vocab["ab"] = 256;
  vocab["abab"] = 257;
  json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab ab"}}}}};
}

json added(int64_t id, const char* content) { return {{"id", id}, {"content", content}, {"special", true}}; }

Result<Tokenizer> load(const json& j) { return Tokenizer::from_json(j.dump(), "tokenizer.json"); }

/// Loading fails and the message has all of `parts`.
void check_refused(const json& j, std::initializer_list<const char*> parts) {
  auto tokenizer = load(j);
  REQUIRE_FALSE(tokenizer.ok());
  std::string message = tokenizer.status().message();
  CAPTURE(message);
  CHECK(message.starts_with("tokenizer.json: "));
  for (const char* part : parts) CHECK(message.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("tokenizer/ merges the lowest rank first, leftmost among equals") {
  auto t = load(small());
  REQUIRE(t.ok());
  CHECK(*t->encode("ab") == Ids{256});
  CHECK(*t->encode("aabab") == Ids{'a', 257});
  CHECK(*t->encode("ababab") == Ids{257, 256});
  CHECK(t->encode("")->empty());
}

TEST_CASE("tokenizer/ long words give the same ids as short ones") {
  auto t = load(small());
  REQUIRE(t.ok());
  std::string text;
  Ids expected;
  for (int i = 0; i < 1000; ++i) text += "ababc", expected.insert(expected.end(), {257, 'c'});
  CHECK(*t->encode(text) == expected);
}

TEST_CASE("tokenizer/ decoding gives back every valid text") {
  auto t = Tokenizer::from_file("tests/data/toy-qwen3vl/tokenizer.json");
  REQUIRE_MESSAGE(t.ok(), t.status().message());
  std::mt19937 rng(1);
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (int k = 0; k < 20; ++k) {
      char32_t c = rng() % 4 == 0 ? rng() % 0x110000 : rng() % 0x3000;
      if (c < 0xD800 || c >= 0xE000) append_utf8(c, text);
    }
    CHECK(t->decode(*t->encode(text)) == nfc(text));
  }
}

TEST_CASE("tokenizer/ invalid UTF-8 is read with replacement characters") {
  CHECK(replace_invalid_utf8("a\xC3(\xE2\x82") == "a\xEF\xBF\xBD(\xEF\xBF\xBD");
  CHECK(replace_invalid_utf8("\xED\xA0\x80\xF4\x90\x80\x80\xC0\x80") == [] {
    std::string out;
    for (int i = 0; i < 9; ++i) out += "\xEF\xBF\xBD";
    return out;
  }());
  auto t = load(small());
  REQUIRE(t.ok());
  CHECK(*t->encode("\xFF") == *t->encode("\xEF\xBF\xBD"));
  CHECK(t->decode(Ids{0xE2, 0x82, 'x'}) == "\xEF\xBF\xBDx");
}

TEST_CASE("tokenizer/ special tokens are found in the text and left out when decoding") {
  json j = small();
  j["added_tokens"] = {added(300, "<|a|>"), added(301, "<|a|>b")};
  auto t = load(j);
  REQUIRE_MESSAGE(t.ok(), t.status().message());
  CHECK(*t->encode("x<|a|>c<|a|>b<|a") == Ids{'x', 300, 'c', 301, '<', '|', 'a'});
  CHECK(t->decode(Ids{'x', 300, 'c'}) == "xc");
  CHECK(t->decode(Ids{'x', 300, 'c'}, false) == "x<|a|>c");
  CHECK(t->id_of("<|a|>") == 300);
  CHECK(t->token_of(300) == "<|a|>");
  CHECK(t->is_special(300));
  CHECK_FALSE(t->is_special('x'));
  CHECK(t->vocab_size() == 302);
}

TEST_CASE("tokenizer/ ids without token are left out when decoding") {
  json j = small();
  j["added_tokens"] = json::array({added(300, "<|a|>")});  // braces alone around one value mean a copy to GCC
  auto t = load(j);
  REQUIRE(t.ok());
  CHECK(t->decode(Ids{'x', 299, 301, -1, INT64_MAX, 'y'}) == "xy");
  CHECK(t->id_of("nope") == -1);
}

TEST_CASE("tokenizer/ the post-processor's tokens are put around the text on request") {
  json j = small();
  j["added_tokens"] = {added(300, "<s>"), added(301, "</s>")};
  j["post_processor"] = {{"type", "TemplateProcessing"},
                         {"single",
                          {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
                           {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                           {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}}}},
                         {"special_tokens", {{"<s>", {{"ids", {300}}}}, {"</s>", {{"ids", {301}}}}}}};
  auto t = load(j);
  REQUIRE_MESSAGE(t.ok(), t.status().message());
  CHECK(*t->encode("x") == Ids{300, 'x', 301});
  CHECK(*t->encode("x", false) == Ids{'x'});
}

TEST_CASE("tokenizer/ errors name the component or key that is not supported or broken") {
  auto with = [](const char* pointer, json value) {
    json j = small();
    j[json::json_pointer(pointer)] = std::move(value);
    return j;
  };
  check_refused(with("/normalizer", {{"type", "Lowercase"}}), {"normalizer", "Lowercase"});
  check_refused(with("/pre_tokenizer", {{"type", "UnicodeScripts"}}), {"pre_tokenizer", "UnicodeScripts"});
  check_refused(with("/pre_tokenizer", {{"type", "Metaspace"}}), {"pre_tokenizer.replacement"});
  check_refused(with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "__"}}),
                {"'__'", "one character"});
  check_refused(
      with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}}),
      {"prepend_scheme", "last"});
  check_refused(with("/decoder", {{"type", "Strip"}, {"content", " "}, {"start", -1}}), {"decoder.start"});
  check_refused(with("/post_processor", {{"type", "BertProcessing"}}), {"post_processor", "BertProcessing"});
  check_refused(with("/decoder", {{"type", "WordPiece"}}), {"decoder", "WordPiece"});
  check_refused(with("/model/type", "WordPiece"), {"model.type", "WordPiece"});
  check_refused(with("/model/type", "Unigram"), {"model.vocab", "scores"});
  check_refused(with("/model/vocab", json::array({json::array({"a", 1, 2})})), {"model.vocab[1]"});
  check_refused(with("/model/vocab", json::array({json::array({1, "a"})})), {"model.vocab[0]"});
  check_refused(with("/model/dropout", 0.1), {"model.dropout", "0.1"});
  check_refused(with("/model/byte_fallback", "yes"), {"model.byte_fallback"});
  check_refused(with("/model/new_option", 1), {"model.new_option"});
  check_refused(with("/model/merges", {"a b c"}), {"model.merges[0]"});
  check_refused(with("/model/merges", {"a b", "a q"}), {"model.merges[1]", "'aq'"});
  check_refused(with("/model/merges", {{"a", "b", "c"}}), {"model.merges[0]"});
  check_refused(with("/model/merges", {1}), {"model.merges[0]"});
  check_refused(with("/model/vocab/ab", -1), {"model.vocab['ab']"});
  check_refused(with("/model/vocab/ab", 1.5), {"model.vocab['ab']"});
  check_refused(with("/model/vocab/ab", "x"), {"model.vocab['ab']"});
  check_refused(with("/model/vocab/ab", 97), {"id 97", "twice"});
  check_refused(with("/model/vocab/ab", 1 << 24), {"model.vocab['ab']"});
  check_refused(with("/model/vocab", json::object()), {"model.vocab"});
  check_refused(with("/model/vocab", 3), {"model.vocab"});
  check_refused(with("/added_tokens", json::array({added(97, "x")})), {"added_tokens[0]"});
  check_refused(with("/added_tokens", json::array({added(300, "b")})), {"added_tokens[0]", "98"});
  check_refused(with("/added_tokens", {added(300, "<a>"), added(301, "<a>")}), {"added_tokens[1]", "twice"});
  check_refused(with("/added_tokens", {added(300, "<a>"), added(300, "<b>")}), {"added_tokens[1]", "300"});
  check_refused(with("/added_tokens", json::array({added(int64_t{1} << 40, "<a>")})), {"added_tokens[0].id"});
  check_refused(with("/added_tokens", json::array({json::object({{"id", 300}})})),
                {"added_tokens[0].content"});
  check_refused(with("/added_tokens", 7), {"added_tokens"});
  json missing = small();
  missing["model"]["vocab"].erase("a");
  missing["model"]["unk_token"] = "<unk>";
  missing["model"]["merges"] = json::array();
  check_refused(missing, {"model.unk_token", "<unk>"});
}

TEST_CASE("tokenizer/ a byte without token is left out, or is the unknown token") {
  json j = small();
  j["model"]["vocab"].erase("c");
  CHECK(*load(j)->encode("abcc") == Ids{256});
  j["model"]["unk_token"] = "x";
  CHECK(*load(j)->encode("accb") == Ids{'a', 'x', 'x', 'b'});
  j["model"]["fuse_unk"] = true;
  CHECK(*load(j)->encode("accb") == Ids{'a', 'x', 'b'});
}

TEST_CASE("tokenizer/ unigrams: the most likely pieces, unknown characters as one token") {
  json pieces = json::array();
  for (const auto& [piece, score] :
       {std::pair("<unk>", 0.0), {"a", -1.0}, {"b", -1.0}, {"ab", -1.5}, {"aba", -4.0}})
    pieces.push_back(json::array({piece, score}));
  json j = small();
  j["pre_tokenizer"] = j["decoder"] = nullptr;
  j["model"] = {{"type", "Unigram"}, {"vocab", pieces}, {"unk_id", 0}};
  auto t = load(j);
  REQUIRE_MESSAGE(t.ok(), t.status().message());
  CHECK(*t->encode("aba") == Ids{3, 1});
  CHECK(*t->encode("axyb") == Ids{1, 0, 2});
  j["model"]["unk_id"] = nullptr;
  CHECK_FALSE(load(j)->encode("axb").ok());
  CHECK(*load(j)->encode("ba") == Ids{2, 1});
}

TEST_CASE("tokenizer/ the file is named when it is missing") {
  auto t = Tokenizer::from_file("no/such/tokenizer.json");
  REQUIRE_FALSE(t.ok());
  CHECK(t.status().message().find("no/such/tokenizer.json") != std::string::npos);
}

TEST_CASE("tokenizer/ every cut or changed file loads or gives an error") {
  std::string text = small().dump();
  for (size_t cut = 0; cut < text.size(); cut += 7)
    CHECK_FALSE(Tokenizer::from_json(text.substr(0, cut), "cut").ok());
  std::mt19937 rng(2);
  for (int i = 0; i < 400; ++i) {
    std::string changed = text;
    for (int k = 0; k < 3; ++k) changed[rng() % changed.size()] = "[]{}\",:0 a\\\xFF-"[rng() % 14];
    auto t = Tokenizer::from_json(changed, "changed");
    if (t.ok()) (void)t->encode("abab \xC3\xA9");
  }
  CHECK_FALSE(Tokenizer::from_json(std::string(100000, '['), "deep").ok());
}

TEST_CASE("tokenizer/ a pattern with another meaning in the library is refused") {
  for (const char* pattern :
       {"^a", "a$", "\\h", "\\w+", "[a[b]]", "[a&&b]", "\\p{Han}", "(?<name>a)", "(?x) a", "a{2}+", "(*UCP)a",
        "(?i:ss)", "a*", "(a", "[a", "\\", "\\p{", "\xFF"}) {
    CAPTURE(pattern);
    CHECK_FALSE(TokenizerRegex::compile(pattern).ok());
  }
}

TEST_CASE("tokenizer/ a pattern that backtracks without end is an error") {
  auto regex = TokenizerRegex::compile("(?:a+)+b");
  REQUIRE(regex.ok());
  std::vector<RegexPiece> pieces;
  std::string text = "cb";
  for (int i = 0; i < 200; ++i) text.insert(text.begin(), 'a');
  CHECK_FALSE(regex->split(text, pieces).ok());
}

TEST_CASE("unicode/ texts of inert characters are what utf8proc leaves alone") {
  // nfc() has a fast way for them; it must agree with the slow one, which a combining mark at the end forces.
  for (char32_t c = 1; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string alone, marked;
    append_utf8(c, alone);
    marked = alone + "x\xCC\xB4";  // U+0334 composes with nothing
    CHECK_MESSAGE(nfc(marked) == nfc(alone) + "x\xCC\xB4", static_cast<uint32_t>(c));
  }
}

TEST_CASE("unicode/ the stand-in for matching has the same length") {
  for (char32_t c : {char32_t{0x0897}, char32_t{0x180E}, char32_t{0x105C0}, char32_t{0x323AF}}) {
    std::string text = "a", out;
    append_utf8(c, text);
    REQUIRE(regex_stand_in(text, out));
    CHECK(out.size() == text.size());
    CHECK(out != text);
    CHECK(is_valid_utf8(out));
  }
  std::string out = "kept";
  CHECK_FALSE(regex_stand_in("caf\xC3\xA9 \xE4\xBD\xA0", out));
  CHECK(out == "kept");
}

TEST_CASE("tokenizer/ the toy tokenizers load") {
  for (const char* toy : {"toy-qwen3vl", "toy-qwen25vl", "toy-hunyuan-dense", "toy-hunyuan-moe"}) {
    auto t = Tokenizer::from_file(std::string("tests/data/") + toy + "/tokenizer.json");
    REQUIRE_MESSAGE(t.ok(), t.status().message());
    CHECK(t->decode(*t->encode("Hello, world")) == "Hello, world");
  }
}

TEST_CASE("unicode/ runs of combining marks are ordered by their classes, of any length") {
  constexpr int kMarks = 20000;
  std::string marks = "a", below, above;
  for (int i = 0; i < kMarks; ++i) marks += "\xCC\x81";  // U+0301, above
  for (int i = 0; i < kMarks; ++i) marks += "\xCC\x96";  // U+0316, below
  for (int i = 0; i < kMarks; ++i) below += "\xCC\x96";
  for (int i = 1; i < kMarks; ++i) above += "\xCC\x81";
  CHECK(nfc(marks) == "\xC3\xA1" + below + above);
}
