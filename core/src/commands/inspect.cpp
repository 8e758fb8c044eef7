#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "commands/commands.h"
#include "util/strict_json.h"

namespace slim {
namespace {

using Json = nlohmann::ordered_json;

struct Amount {
  int64_t tensors = 0, parameters = 0, bytes = 0;
  std::map<std::string, int64_t> dtypes;  // bytes by element type

  void add(const TensorSpec& spec, int64_t spec_parameters) {
    const int64_t size = byte_size(spec).value_or(0);
    ++tensors;
    parameters += spec_parameters;
    bytes += size;
    dtypes[std::string(dtype_name(spec.dtype))] += size;
  }
  Json json() const {
    return {{"tensors", tensors}, {"parameters", parameters}, {"bytes", bytes}, {"dtypes", dtypes}};
  }
};

constexpr std::array kTowers = {"vision", "language", "embedding", "head", "other"};

bool contains_any(std::string_view name, std::initializer_list<std::string_view> parts) {
  return std::ranges::any_of(
      parts, [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
}

// By the names that Hugging Face models share. A leading dot lets a part match at the start of a name too.
std::string_view tower_of(const std::string& tensor) {
  const std::string name = "." + tensor;
  if (contains_any(name, {".visual.", ".vision_tower.", ".vision_model.", ".vision_encoder.",
                          ".multi_modal_projector.", ".mm_projector."}))
    return "vision";
  if (contains_any(name, {".audio_tower.", ".audio_model."})) return "other";
  if (contains_any(name, {".embed_tokens.", ".wte.", ".word_embeddings."})) return "embedding";
  if (contains_any(name, {".lm_head."})) return "head";
  if (contains_any(name,
                   {".language_model.", ".model.layers.", ".model.norm.", ".transformer.h.", ".layers."}))
    return "language";
  return "other";
}

std::pair<std::string, std::string> split_name(const std::string& tensor) {
  const size_t dot = tensor.rfind('.');
  return dot == std::string::npos ? std::pair(std::string(), tensor)
                                  : std::pair(tensor.substr(0, dot), tensor.substr(dot + 1));
}

// What quantized layers store besides their weights.
bool is_quantization_data(std::string_view suffix) {
  static constexpr std::array<std::string_view, 22> kSuffixes = {"weight_scale",
                                                                 "weight_zero_point",
                                                                 "weight_shape",
                                                                 "weight_global_scale",
                                                                 "weight_scale_inv",
                                                                 "weight_offset",
                                                                 "weight_g_idx",
                                                                 "scales",
                                                                 "qzeros",
                                                                 "g_idx",
                                                                 "input_scale",
                                                                 "input_zero_point",
                                                                 "input_global_scale",
                                                                 "input_offset",
                                                                 "deq_scale",
                                                                 "quant_bias",
                                                                 "k_scale",
                                                                 "v_scale",
                                                                 "q_scale",
                                                                 "weight_scale_2",
                                                                 "kv_cache_scale",
                                                                 "kv_cache_offset"};
  return std::ranges::find(kSuffixes, suffix) != kSuffixes.end();
}

int64_t elements(const TensorSpec& spec) {
  int64_t count = 1;
  for (const int64_t dim : spec.shape) count *= dim;
  return count;
}

struct Quantization {
  std::string method, format;
  std::optional<int64_t> bits, group_size;
  int64_t ignored = 0;

  Json json() const {
    const auto number = [](const std::optional<int64_t>& value) { return value ? Json(*value) : Json(); };
    return {{"method", method},
            {"format", format},
            {"bits", number(bits)},
            {"group_size", number(group_size)},
            {"ignored", ignored}};
  }
};

std::string text_at(const Json& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (const auto found = object.find(key); found != object.end() && found->is_string())
      return found->get<std::string>();
  }
  return {};
}

std::optional<int64_t> number_at(const Json& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (const auto found = object.find(key); found != object.end() && found->is_number_integer())
      return found->get<int64_t>();
  }
  return std::nullopt;
}

const Json* object_at(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_object() ? &*found : nullptr;
}

// The "weights" of the first group, where compressed-tensors keeps bits and group size.
const Json* first_weights(const Json& config) {
  const Json* groups = object_at(config, "config_groups");
  if (groups == nullptr || groups->empty() || !groups->begin()->is_object()) return nullptr;
  return object_at(*groups->begin(), "weights");
}

std::optional<Quantization> quantization_of(const Json& model) {
  const Json* config = object_at(model, "quantization_config");
  if (const Json* text = object_at(model, "text_config"); config == nullptr && text != nullptr)
    config = object_at(*text, "quantization_config");
  if (config == nullptr) return std::nullopt;
  Quantization found;
  found.method = text_at(*config, {"quant_method"});
  if (const Json* producer = object_at(*config, "producer"); found.method.empty() && producer != nullptr)
    found.method = text_at(*producer, {"name"});  // ModelOpt's older versions
  found.format = text_at(*config, {"format", "checkpoint_format", "version", "fmt"});
  const Json* weights = first_weights(*config);
  for (const Json* source : {config, weights}) {
    if (source == nullptr) continue;
    if (!found.bits) found.bits = number_at(*source, {"bits", "num_bits", "w_bit"});
    if (!found.group_size) found.group_size = number_at(*source, {"group_size", "q_group_size"});
  }
  for (const char* key : {"ignore", "modules_to_not_convert", "ignored_layers"}) {
    if (const auto list = config->find(key); list != config->end() && list->is_array())
      found.ignored += static_cast<int64_t>(list->size());
  }
  return found;
}

// Numbers of the float model that a tensor stands for. Packed weights hold several in an element; `shapes`
// has the exact count where the format stores it.
int64_t parameters_of(const TensorSpec& spec, const std::optional<Quantization>& quantization,
                      const std::map<std::string, int64_t>& shapes) {
  if (!quantization) return elements(spec);
  const auto [module, suffix] = split_name(spec.name);
  if (is_quantization_data(suffix)) return 0;
  const bool packed = suffix == "weight_packed" || suffix == "qweight";
  if (const auto shape = shapes.find(module); shape != shapes.end() && (packed || suffix == "weight"))
    return shape->second;
  if (!packed) return elements(spec);
  const int64_t bits = std::max<int64_t>(quantization->bits.value_or(4), 1);
  return static_cast<int64_t>(static_cast<__int128>(elements(spec)) * dtype_bits(spec.dtype) / bits);
}

// Ascend checkpoints describe their tensors in a file of their own.
Result<std::optional<Quantization>> described_quantization(const Checkpoint& checkpoint) {
  constexpr int64_t kLargest = 100'000'000;
  for (const std::string& name : checkpoint.side_files()) {
    if (!name.starts_with("quant_model_description") || !name.ends_with(".json")) continue;
    const std::string path = checkpoint.folder() + "/" + name;
    SLIM_ASSIGN(const std::string text, read_text(path, kLargest));
    const auto json = parse_strict_json(text);
    if (!json.ok()) return json.status().in(path);
    Quantization found;
    found.method = "ascend";
    found.format = text_at(*json, {"model_quant_type"});
    found.group_size = number_at(*json, {"group_size"});
    return std::optional(found);
  }
  return std::optional<Quantization>();
}

// The float element counts of packed layers: from their tiny "weight_shape" tensors, or from scales with twice the weight's rows.
Result<std::map<std::string, int64_t>> stored_shapes(const Checkpoint& checkpoint) {
  std::map<std::string, int64_t> counts;
  for (const auto& [name, spec] : checkpoint.tensors()) {
    const auto [module, suffix] = split_name(name);
    if (suffix == "weight_scale" && spec.shape.size() == 2) {
      const auto weight = checkpoint.tensors().find(module + ".weight");
      const bool pairs = weight != checkpoint.tensors().end() && weight->second.shape.size() == 2 &&
                         spec.shape[0] == 2 * weight->second.shape[0] && weight->second.dtype == Dtype::kI8;
      if (pairs) counts[module] = 2 * elements(weight->second);
    }
    if (suffix != "weight_shape" || spec.dtype != Dtype::kI64 || spec.shape != std::vector<int64_t>{2})
      continue;
    SLIM_ASSIGN(const at::Tensor shape, checkpoint.read(name));
    TensorSpec logical{
        .name = module, .dtype = Dtype::kI8, .shape = {shape[0].item<int64_t>(), shape[1].item<int64_t>()}};
    const auto count = byte_size(logical);
    if (!count)
      return Status(Code::kCorrupt, checkpoint.file_of(name) + ": tensor '" + name + "' holds " +
                                        shape_string(logical.shape) + ", which is no shape");
    counts[module] = *count;
  }
  return counts;
}

// Text of config.json goes to a terminal.
std::string printable(std::string text) {
  std::ranges::replace_if(
      text, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return text;
}

std::string thousands(int64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string row(std::string_view tower, const Amount& amount) {
  std::string dtypes;
  for (const auto& [name, bytes] : amount.dtypes) dtypes += (dtypes.empty() ? "" : " ") + name;
  char line[96];
  std::snprintf(line, sizeof line, "  %-10s %8s %18s %18s  ", std::string(tower).c_str(),
                thousands(amount.tensors).c_str(), thousands(amount.parameters).c_str(),
                thousands(amount.bytes).c_str());
  return line + dtypes + "\n";
}

std::string quantization_text(const std::optional<Quantization>& found) {
  if (!found) return "none";
  std::string text = printable(found->method.empty() ? "unnamed method" : found->method);
  if (!found->format.empty()) text += ", " + printable(found->format);
  if (found->bits) text += ", " + std::to_string(*found->bits) + " bits";
  if (found->group_size)
    text += *found->group_size > 0 ? ", group " + std::to_string(*found->group_size) : ", whole rows";
  return text + ", " + std::to_string(found->ignored) + " ignore entries";
}

}  // namespace

Result<Report> inspect(const std::string& folder, PluginRegistry&) {
  SLIM_ASSIGN(const auto checkpoint, Checkpoint::open(folder));
  SLIM_ASSIGN(const Json config, parse_strict_json(checkpoint->config_json()));
  auto quantization = quantization_of(config);
  if (!quantization) {
    SLIM_ASSIGN(quantization, described_quantization(*checkpoint));
  }
  SLIM_ASSIGN(const auto shapes, stored_shapes(*checkpoint));

  Amount total;
  std::map<std::string, Amount, std::less<>> towers;
  std::map<std::string, Amount> files;
  for (const auto& [name, spec] : checkpoint->tensors()) {
    const int64_t parameters = parameters_of(spec, quantization, shapes);
    total.add(spec, parameters);
    towers[std::string(tower_of(name))].add(spec, parameters);
    files[std::filesystem::path(checkpoint->file_of(name)).filename().string()].add(spec, parameters);
  }

  const std::string type = text_at(config, {"model_type"});
  Report report;
  report.text = folder + "\n  model         " + printable(type.empty() ? "unknown" : type) +
                "\n  weights       " + std::to_string(checkpoint->weight_files().size()) + " files, " +
                bytes_string(checkpoint->total_bytes()) + "\n  side files    " +
                std::to_string(checkpoint->side_files().size()) + "\n  quantization  " +
                quantization_text(quantization) +
                "\n\n  tower       tensors         parameters              bytes  dtypes\n";
  Json json_towers = Json::object(), json_files = Json::array();
  for (const char* tower : kTowers) {
    const auto found = towers.find(std::string_view(tower));
    if (found == towers.end()) continue;
    report.text += row(tower, found->second);
    json_towers[tower] = found->second.json();
  }
  report.text += row("total", total);
  for (const auto& name : checkpoint->weight_files())
    json_files.push_back({{"name", name}, {"tensors", files[name].tensors}, {"bytes", files[name].bytes}});

  Json json = {{"folder", folder}, {"model_type", type}};
  json.update(total.json());
  json["towers"] = json_towers;
  json["files"] = json_files;
  json["side_files"] = checkpoint->side_files();
  json["quantization"] = quantization ? quantization->json() : Json();
  report.json = json.dump(2, ' ', false, Json::error_handler_t::replace);
  return report;
}

}  // namespace slim
