#include "util/fingerprint.h"

#include "util/strict_json.h"

namespace slim {

std::string difference(const Fingerprint& found, const Fingerprint& expected) {
  std::string text;
  for (const auto& [name, value] : expected) {
    const auto other = found.find(name);
    if (other != found.end() && other->second == value) continue;
    text += (text.empty() ? "" : "; ") + name + ": " + (other == found.end() ? "not said" : other->second) +
            ", this run has " + value;
  }
  return text;
}

std::string fingerprint_json(const Fingerprint& fingerprint) {
  return json_text(nlohmann::json(fingerprint));
}

Result<Fingerprint> parse_fingerprint(std::string_view json) {
  SLIM_ASSIGN(const auto parsed, parse_strict_json(json));
  Fingerprint fingerprint;
  if (!parsed.is_object()) return Status(Code::kCorrupt, "the fingerprint is no JSON object");
  for (const auto& [name, value] : parsed.items()) {
    if (!value.is_string()) return Status(Code::kCorrupt, "the fingerprint's '" + name + "' is no text");
    fingerprint[name] = value.get<std::string>();
  }
  return fingerprint;
}

}  // namespace slim
