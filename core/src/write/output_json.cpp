#include "write/output_json.h"

#include "checkpoint/cast.h"
#include "util/strict_json.h"
#include "util/text.h"

namespace slim {
namespace {

using Json = nlohmann::ordered_json;

/// The object that the last part of `path` belongs in, and that part; null if the model has no such object.
std::pair<Json*, std::string> find_parent(Json& root, const std::string& path) {
  Json* parent = &root;
  size_t begin = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.', begin)) {
    const auto found = parent->find(path.substr(begin, dot - begin));
    if (found == parent->end() || !found->is_object()) return {nullptr, ""};
    parent = &*found;
    begin = dot + 1;
  }
  return {parent, path.substr(begin)};
}

Status set_entry(Json& root, const std::string& path, const std::string& text) {
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded())
    return {Code::kInternal,
            "config.json: the format's value of '" + path + "' is no JSON: " + cut_text(text, 80)};
  const auto [parent, name] = find_parent(root, path);
  if (parent) (*parent)[name] = value;
  return {};
}

/// Says the dtype wherever the configuration, or that of one of the model's parts, names one; else at the top.
void set_dtype(Json& root, at::ScalarType dtype) {
  bool named = false;
  const auto set = [&](Json& object) {
    for (const char* key : {"dtype", "torch_dtype"}) {
      const auto found = object.find(key);
      if (found == object.end()) continue;
      *found = dtype_key(dtype);
      named = true;
    }
  };
  set(root);
  for (auto& [key, value] : root.items()) {
    if (key.ends_with("_config") && key != "quantization_config" && value.is_object()) set(value);
  }
  if (!named) root["torch_dtype"] = dtype_key(dtype);
}

}  // namespace

Result<std::string> output_config_json(const std::string& config_json, const Format& output_format,
                                       const OutputModel& output, std::optional<at::ScalarType> dtype) {
  SLIM_ASSIGN(Json config, parse_strict_json(config_json));
  if (!config.is_object()) return Status(Code::kCorrupt, "config.json is not a JSON object");
  SLIM_ASSIGN(const std::string quantization, output_format.quantization_config(output));
  if (dtype) set_dtype(config, *dtype);
  if (!quantization.empty()) SLIM_TRY(set_entry(config, "quantization_config", quantization));
  SLIM_ASSIGN(const auto entries, output_format.config_entries(output));
  for (const auto& [path, value] : entries) SLIM_TRY(set_entry(config, path, value));
  return config.dump(2) + "\n";
}

}  // namespace slim
