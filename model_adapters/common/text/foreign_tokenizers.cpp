#include "common/text/foreign_tokenizers.hpp"

#include <algorithm>
#include <array>
#include <map>

#include "common/files/side_file.hpp"
#include "common/text/tokenizer_bpe.hpp"
#include "common/text/tokenizer_component.hpp"

namespace slim::model {
namespace {

using nlohmann::json;

/// How Qwen 1 to 3 and Hunyuan cut text before byte pairs.
constexpr const char* kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", use_regex}};
}

void set_qwen_rules(json& out) {
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", kQwenPattern}}}, {"behavior", "Isolated"}};
  out["normalizer"] = {{"type", "NFC"}};
  out["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, byte_level(false)}}};
  out["decoder"] = byte_level(false);
}

Result<json> read_json_file(const std::string& path) {
  auto text = read_side_file(path);
  if (!text.ok() && text.status().code() == Code::kNotFound) return json::object();
  if (!text.ok()) return text.status();
  SLIM_ASSIGN(json value, parse_side_json(*text, path));
  if (!value.is_object()) return Status(Code::kCorrupt, path + ": expected a JSON object");
  return value;
}

json special(int64_t id, const std::string& content) {
  return {{"id", id}, {"content", content}, {"special", true}, {"normalized", false}};
}

/// tokenizer_config.json's "added_tokens_decoder": {"151643": {"content": ..., flags}}.
Status read_added_tokens(const json& decoder, json& out) {
  for (const auto& [key, token] : decoder.items()) {
    const bool digits = !key.empty() && key.size() < 10 && std::all_of(key.begin(), key.end(), ::isdigit);
    if (!digits || !token.is_object())
      return corrupt_key("added_tokens_decoder['" + key + "']", "expected an id and an object");
    out.push_back(token);
    out.back()["id"] = std::stoll(key);
  }
  return {};
}

/// The value of a character of base64, or -1.
int base64_value(char c) {
  static constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const size_t at = kAlphabet.find(c);
  return at == std::string_view::npos ? -1 : static_cast<int>(at);
}

bool decode_base64(std::string_view text, std::string& out) {
  while (text.ends_with('=')) text.remove_suffix(1);
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int value = base64_value(c);
    if (value < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out.push_back(static_cast<char>(bits >> count & 0xFF));
  }
  return true;
}

template <class Line>
Status for_lines(std::string_view text, const Line& line) {
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view one = text.substr(0, end);
    if (one.ends_with('\r')) one.remove_suffix(1);
    SLIM_TRY(line(one, number));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return {};
}

/// tiktoken merges whatever gives the token of the lowest rank; each way to make a token of two is a merge. `tokens`: bytes, by rank.
void add_merges(const std::vector<std::string>& tokens, TokenizerJson& out) {
  std::map<std::string_view, size_t> known;
  for (size_t rank = 0; rank < tokens.size(); ++rank) known.emplace(tokens[rank], rank);
  for (const std::string_view text : tokens) {
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = known.find(text.substr(0, cut)), right = known.find(text.substr(cut));
      if (left == known.end() || right == known.end()) continue;
      out.merges.emplace_back(out.vocab[left->second].token, out.vocab[right->second].token);
    }
  }
}

Result<std::vector<std::string>> read_ranks(std::string_view text) {
  std::vector<std::string> tokens;
  SLIM_TRY(for_lines(text, [&](std::string_view line, size_t number) -> Status {
    if (line.empty()) return {};
    const size_t space = line.find(' ');
    std::string token;
    if (space == std::string_view::npos || !decode_base64(line.substr(0, space), token) || token.empty() || token.size() > kLongestToken ||
        line.substr(space + 1) != std::to_string(tokens.size()))
      return Status(Code::kCorrupt, "line " + std::to_string(number) +
                                        ": expected a token in base64 and the rank " +
                                        std::to_string(tokens.size()));
    tokens.push_back(std::move(token));
    return tokens.size() < static_cast<size_t>(kMaxVocabulary) ? Status{}
                                                               : Status(Code::kCorrupt, "too many tokens");
  }));
  return tokens;
}

/// The tokens that Hunyuan's own class puts behind the ranks.
json hunyuan_tokens(int64_t first) {
  json out = json::array();
  for (const char* token : {"<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"})
    out.push_back(special(first + static_cast<int64_t>(out.size()), token));
  for (int extra = 0; extra < 205; ++extra)
    out.push_back(
        special(first + static_cast<int64_t>(out.size()), "<|extra_" + std::to_string(extra) + "|>"));
  return out;
}

}  // namespace

Result<TokenizerConfig> read_tokenizer_config(const std::string& folder) {
  TokenizerConfig out;
  const std::string path = folder + "/tokenizer_config.json";
  SLIM_ASSIGN(out.values, read_json_file(path));
  if (const auto decoder = out.values.find("added_tokens_decoder");
      decoder != out.values.end() && decoder->is_object()) {
    if (Status status = read_added_tokens(*decoder, out.added); !status.ok())
      return std::move(status).in(path);
    return out;
  }
  SLIM_ASSIGN(const json ids, read_json_file(folder + "/added_tokens.json"));
  for (const auto& [content, id] : ids.items()) {
    if (!is_index(id, kMaxVocabulary))
      return Status(Code::kCorrupt, folder + "/added_tokens.json: '" + content + "': expected an id");
    out.added.push_back(special(id.get<int64_t>(), content));
  }
  return out;
}

Result<TokenizerJson> vocabulary_tokenizer(std::string_view vocab, std::string_view merges,
                                           const TokenizerConfig& config) {
  const json name = config.values.value("tokenizer_class", json("Qwen2Tokenizer"));
  const bool qwen = name == "Qwen2Tokenizer" || name == "Qwen2TokenizerFast";
  if (!qwen && name != "GPT2Tokenizer" && name != "GPT2TokenizerFast")
    return Status(Code::kUnsupported, "tokenizer_class " + shown(name) +
                                          " is read from tokenizer.json alone; save the tokenizer once with "
                                          "transformers' save_pretrained, which writes that file");
  SLIM_ASSIGN(TokenizerJson out,
              parse_tokenizer_json(
                  "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":" + std::string(vocab) + "}}"));
  SLIM_TRY(for_lines(merges, [&](std::string_view line, size_t number) -> Status {
    if (line.empty() || (number == 1 && line.starts_with("#version"))) return {};
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
      return Status(Code::kCorrupt, "merges.txt, line " + std::to_string(number) + ": expected two parts");
    const auto left = store(out, line.substr(0, space));
    out.merges.emplace_back(left, store(out, line.substr(space + 1)));
    return {};
  }));
  if (qwen) {
    set_qwen_rules(out.rest);
  } else {
    out.rest["pre_tokenizer"] = out.rest["decoder"] = byte_level(true);
  }
  out.rest["added_tokens"] = config.added;
  return out;
}

Result<TokenizerJson> tiktoken_tokenizer(std::string_view ranks, bool hunyuan,
                                         const TokenizerConfig& config) {
  SLIM_ASSIGN(const std::vector<std::string> tokens, read_ranks(ranks));
  TokenizerJson out;
  for (const std::string& token : tokens)
    out.vocab.push_back({store(out, in_byte_level_alphabet(token)), static_cast<int64_t>(out.vocab.size())});
  add_merges(tokens, out);
  out.rest = {{"model", {{"type", "BPE"}, {"ignore_merges", true}}}};
  set_qwen_rules(out.rest);
  out.rest["added_tokens"] = hunyuan ? hunyuan_tokens(static_cast<int64_t>(tokens.size())) : config.added;
  return out;
}

}  // namespace slim::model
