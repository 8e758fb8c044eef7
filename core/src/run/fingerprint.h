#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "run/calibration.h"
#include "run/model.h"

namespace slim {

/// What a stored result depends on: a name for people ("config.json of the model") and its value.
using Fingerprint = std::map<std::string, std::string>;

/// FNV-1a of 64 bits, continued from `hash`: against accidents, not against attackers.
constexpr uint64_t kHashStart = 0xcbf29ce484222325u;
SLIM_API uint64_t hash_bytes(std::span<const std::byte> bytes, uint64_t hash = kHashStart);
SLIM_API uint64_t hash_text(std::string_view text, uint64_t hash = kHashStart);

/// config.json, and of every tensor name, type, shape and first bytes.
SLIM_API Result<Fingerprint> model_fingerprint(const Model&);
/// "the model's config.json is 1a2b, expected 3c4d; ..." where `found` differs from `expected`, or lacks an entry; empty if they agree.
SLIM_API std::string difference(const Fingerprint& found, const Fingerprint& expected);
SLIM_API std::string fingerprint_json(const Fingerprint&);
SLIM_API Result<Fingerprint> parse_fingerprint(std::string_view json);

}  // namespace slim
