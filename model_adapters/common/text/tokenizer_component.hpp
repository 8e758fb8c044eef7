#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "slim/status.hpp"

namespace slim::model {

/// A component of a tokenizer.json (normalizer, pre-tokenizer, post-processor, decoder), or one of the components of a Sequence.
struct TokenizerComponent {
  std::string type;   ///< "Split"
  std::string where;  ///< its path in the file: "pre_tokenizer.pretokenizers[0]"
  const nlohmann::json* value;
};

/// Lists the components of `value` in their order: none of null, one of a single component, those of a Sequence and of the Sequences in
/// it, whose members stand under `list`. Views into `value`. Error: kCorrupt.
Result<std::vector<TokenizerComponent>> components_of(const nlohmann::json& value, const char* list,
                                                      const std::string& where);

/// Names a component that slim does not have, and those that it has.
Status unsupported_component(const TokenizerComponent& component, const std::string& supported);

/// Names a key and what is wrong with its value (kCorrupt).
Status corrupt_key(const std::string& key, const std::string& what);

/// Writes a value for a message, at most 120 bytes of it.
std::string shown(const nlohmann::json& value);

/// Reads object[key], which must be there and of `type`. Error: kCorrupt.
Result<nlohmann::json> member_of(const nlohmann::json& object, const std::string& key,
                                 nlohmann::json::value_t type, const std::string& where);
/// Reads a string that must be there. Error: kCorrupt.
Result<std::string> text_of(const nlohmann::json& object, const std::string& key, const std::string& where);
/// Reads a boolean, or `fallback` where there is none. Error: kCorrupt.
Result<bool> flag_of(const nlohmann::json& object, const std::string& key, bool fallback,
                     const std::string& where);
/// Whether a value is an integer from 0 to `limit` - 1.
bool is_index(const nlohmann::json& value, uint64_t limit);

/// Reads a string of exactly one character. Error: kCorrupt.
Result<std::string> character_of(const nlohmann::json& object, const std::string& key,
                                 const std::string& where);

/// Reads {"String": text} or {"Regex": pattern} under "pattern", as a regular expression. Error: kCorrupt.
Result<std::string> pattern_of(const nlohmann::json& object, const std::string& where);

}  // namespace slim::model
