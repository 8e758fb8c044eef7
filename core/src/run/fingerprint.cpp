#include "run/fingerprint.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include <nlohmann/json.hpp>

namespace slim {
namespace {

std::string hex(uint64_t hash) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace

uint64_t hash_bytes(std::span<const std::byte> bytes, uint64_t hash) {
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  return hash;
}

uint64_t hash_text(std::string_view text, uint64_t hash) { return hash_bytes(std::as_bytes(std::span(text)), hash); }

Result<Fingerprint> model_fingerprint(const Model& model) {
  constexpr int64_t kSample = 4096;  // of every tensor: tells a fine-tuned model from its base without reading it all
  const Checkpoint& checkpoint = model.weights->checkpoint();
  uint64_t shapes = kHashStart, contents = kHashStart;
  std::array<std::byte, kSample> sample{};
  for (const auto& [name, spec] : checkpoint.tensors()) {
    shapes = hash_text(name + " " + std::string(dtype_name(spec.dtype)) + shape_string(spec.shape) + "\n", shapes);
    const auto size = static_cast<size_t>(std::min(kSample, byte_size(spec).value_or(0)));
    SLIM_TRY(checkpoint.read_bytes(name, 0, std::span(sample).first(size)));
    contents = hash_bytes(std::span(sample).first(size), contents);
  }
  return Fingerprint{{"the model's config.json", hex(hash_text(checkpoint.config_json()))},
                     {"the model's tensor names and shapes", hex(shapes)},
                     {"the model's weights", hex(contents)},
                     {"the adapter", model.adapter_id}};
}

std::string difference(const Fingerprint& found, const Fingerprint& expected) {
  std::string text;
  for (const auto& [name, value] : expected) {
    const auto other = found.find(name);
    if (other != found.end() && other->second == value) continue;
    text += (text.empty() ? "" : "; ") + name + ": " + (other == found.end() ? "not said" : other->second) + ", this run has " + value;
  }
  return text;
}

std::string fingerprint_json(const Fingerprint& fingerprint) { return nlohmann::json(fingerprint).dump(); }

Result<Fingerprint> parse_fingerprint(std::string_view json) {
  const auto parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  Fingerprint fingerprint;
  if (!parsed.is_object()) return Status(Code::kCorrupt, "the fingerprint is no JSON object");
  for (const auto& [name, value] : parsed.items()) {
    if (!value.is_string()) return Status(Code::kCorrupt, "the fingerprint's '" + name + "' is no text");
    fingerprint[name] = value.get<std::string>();
  }
  return fingerprint;
}

}  // namespace slim
