#include "compress/layout.h"

#include <algorithm>
#include <filesystem>

#include "checkpoint/file.h"
#include "util/strict_json.h"

namespace slim::compressed {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
constexpr int64_t kLargestText = 100'000'000;
constexpr int64_t kMostRanks = 4096;
constexpr char kModelType[] = "model_quant_type";
constexpr std::array kConfigParts = {"", "text_config", "vision_config"};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

Result<Json> read_object(const std::string& path) {
  SLIM_ASSIGN(const std::string text, read_text(path, kLargestText));
  auto json = parse_strict_json(text);
  if (!json.ok()) return json.status().in(path);
  if (!json->is_object())
    return Status(Code::kCorrupt, path + ": is " + json->type_name() + ", expected a JSON object");
  return json;
}

int64_t count_at(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_unsigned() ? found->get<int64_t>() : 0;
}

}  // namespace

std::string rank_folder(int64_t rank, int64_t ranks) {
  return "part" + std::to_string(rank) + "-of-" + std::to_string(ranks);
}
std::string rank_file(const std::string& tag) { return "quant_model_weight_" + lower(tag) + ".safetensors"; }

Result<Types> read_types(const std::string& path) {
  SLIM_ASSIGN(const Json json, read_object(path));
  Types types;
  for (const auto& [name, value] : json.items()) {
    if (name.find('.') == std::string::npos) continue;
    if (!value.is_string())
      return Status(Code::kCorrupt,
                    path + ": '" + name + "' is " + value.type_name() + ", expected the name of a type");
    types[name] = value.get<std::string>();
  }
  return types;
}

Result<std::string> description_text(const std::string& original_path, const Types& types,
                                     const std::string& tag) {
  SLIM_ASSIGN(const Json original, read_object(original_path));
  Json json = Json::object();
  for (const auto& [name, value] : original.items()) {
    if (name.find('.') == std::string::npos) json[name] = value;
  }
  json[kModelType] = tag;
  for (const auto& [name, type] : types) json[name] = type;
  return json.dump(2) + "\n";
}

Result<std::string> config_text(const std::string& config_json, const std::string& from,
                                const std::string& to) {
  SLIM_ASSIGN(Json config, parse_strict_json(config_json));
  for (const char* part : kConfigParts) {
    if (*part && !(config.contains(part) && config[part].is_object())) continue;
    Json& object = *part ? config[part] : config;
    const auto found = object.find("quantize");
    if (found != object.end() && found->is_string() && lower(found->get<std::string>()) == lower(from))
      *found = lower(to);
  }
  return config.dump(2) + "\n";
}

std::string manifest_text(const Manifest& manifest) {
  Json splits = Json::object();
  for (const auto& [name, split] : manifest.splits) splits[name] = split_name(split);
  return Json{{"version", 1}, {"type", manifest.tag}, {"tp", manifest.ranks}, {"split", splits}}.dump(2) +
         "\n";
}

Result<Manifest> read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kPartsFile;
  std::error_code error;
  if (!fs::is_directory(folder, error))
    return Status(Code::kNotFound, folder + ": no such folder; the output of `slim compress` is expected");
  auto read = read_object(path);
  if (!read.ok() && read.status().code() == Code::kNotFound) {
    return Status(Code::kNotFound,
                  folder + ": has no " + kPartsFile + "; the output of `slim compress` is expected");
  }
  if (!read.ok()) return read.status();
  const Json& json = *read;
  const auto corrupt = [&](const std::string& what) { return Status(Code::kCorrupt, path + ": " + what); };
  if (count_at(json, "version") != 1) return corrupt("'version' is not 1, which this slim reads");
  Manifest manifest;
  manifest.ranks = count_at(json, "tp");
  if (manifest.ranks < 1 || manifest.ranks > kMostRanks) return corrupt("'tp' is no number of ranks");
  if (!json.contains("type") || !json["type"].is_string()) return corrupt("'type' is no text");
  manifest.tag = json["type"].get<std::string>();
  if (manifest.tag != kSlimTag && manifest.tag != kCannTag)
    return corrupt("'type' is '" + manifest.tag + "', expected W8A8S_SLIM or W8A8SC");
  if (!json.contains("split") || !json["split"].is_object()) return corrupt("'split' is no object");
  for (const auto& [name, value] : json["split"].items()) {
    const auto split = value.is_string() ? split_from_name(value.get<std::string>()) : std::nullopt;
    if (!split)
      return corrupt("'split' of '" + name + "' is " + value.dump() +
                     ", expected rows, columns, first or copy");
    manifest.splits[name] = *split;
  }
  return manifest;
}

Result<HeadCounts> head_counts(const std::string& config_json) {
  SLIM_ASSIGN(const Json config, parse_strict_json(config_json));
  const bool nested = config.contains("text_config") && config["text_config"].is_object();
  const Json& text = nested ? config["text_config"] : config;
  HeadCounts heads{count_at(text, "num_attention_heads"), count_at(text, "num_key_value_heads")};
  if (heads.key_value == 0) heads.key_value = heads.query;
  return heads;
}

Result<std::vector<std::string>> other_files(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = fs::relative(entry->path(), folder, error).string();
    const bool of_rank = name.starts_with("part") && name.find("-of-") != std::string::npos;
    if (entry->is_directory(error)) {
      if (of_rank) entry.disable_recursion_pending();
    } else if (name != "config.json" && name != kPartsFile && !of_rank) {
      files.push_back(name);
    }
  }
  if (error) return Status(Code::kIo, folder + ": cannot list the folder: " + error.message());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace slim::compressed
