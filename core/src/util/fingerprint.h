#pragma once
#include <map>
#include <string>
#include <string_view>

#include "slim/export.hpp"
#include "slim/status.hpp"

namespace slim {

/// What a stored result depends on: a name for people ("config.json of the model") and its value.
using Fingerprint = std::map<std::string, std::string>;

/// Names each entry in which `found` differs from `expected`, or that it lacks: "the model's config.json is 1a2b, expected 3c4d; ...".
/// Empty if they agree.
SLIM_API std::string difference(const Fingerprint& found, const Fingerprint& expected);
SLIM_API std::string fingerprint_json(const Fingerprint&);
SLIM_API Result<Fingerprint> parse_fingerprint(std::string_view json);

}  // namespace slim
