#pragma once
#include <nlohmann/json.hpp>
#include <string_view>

#include "slim/status.hpp"

namespace slim {

/// Parses JSON that nobody vouches for: valid UTF-8, nothing after the value, no key twice in an object, at
/// most `max_depth` nested arrays and objects. kCorrupt says what is wrong and at which byte. Never throws on
/// any input.
Result<nlohmann::ordered_json> parse_strict_json(std::string_view text, int max_depth = 64);

}  // namespace slim
