#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "slim/status.hpp"

namespace slim {

/// Parses JSON that nobody vouches for: valid UTF-8, nothing after the value, no key twice in an object, at
/// most `max_depth` nested arrays and objects. kCorrupt says what is wrong and at which byte. Never throws on
/// any input.
Result<nlohmann::ordered_json> parse_strict_json(std::string_view text, int max_depth = 64);

/// Adds a key that the object does not have: `object[key] = value` looks through all other keys of an ordered object first.
inline void add_new(nlohmann::ordered_json& object, std::string key, nlohmann::ordered_json value) {
  object.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(std::move(key), std::move(value));
}

/// Writes JSON; text that is not UTF-8 (names of files, cut messages) gets U+FFFD in place of its bytes instead of an exception.
/// `indent` < 0: on one line.
template <class Json>
std::string json_text(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace slim
