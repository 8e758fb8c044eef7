#include "model/weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "checkpoint/file.h"
#include "plugin/guard.h"
#include "slim/quant.hpp"
#include "util/device_moves.h"
#include "util/strict_json.h"

namespace slim {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";

/// The float dtype that most elements have.
at::ScalarType common_dtype(const std::map<std::string, TensorSpec>& tensors) {
  std::map<at::ScalarType, int64_t> bytes;
  for (const auto& [name, spec] : tensors) {
    const auto type = to_scalar_type(spec.dtype);
    if (type && at::isFloatingType(*type) && c10::elementSize(*type) > 1)
      bytes[*type] += byte_size(spec).value_or(0);
  }
  at::ScalarType best = at::kFloat;
  int64_t most = -1;
  for (const auto& [type, count] : bytes) {
    if (count > most) std::tie(best, most) = std::pair(type, count);
  }
  return best;
}

Result<at::Tensor> slice_of(const Layer& layer, at::Tensor stored) {
  if (stored.dim() != 2) {
    return Status(Code::kCorrupt, layer.weight.tensor + ": expected a matrix for layer " + layer.name +
                                      ", found shape " + shape_string(stored.sizes().vec()));
  }
  if (layer.weight.transposed) stored = stored.t();
  if (stored.size(1) != layer.in || stored.size(0) < layer.weight.row_begin + layer.out) {
    return Status(Code::kCorrupt, layer.weight.tensor + ": layer " + layer.name + " needs " +
                                      shape_string({layer.out, layer.in}) + " at row " +
                                      std::to_string(layer.weight.row_begin) + ", found " +
                                      shape_string(stored.sizes().vec()));
  }
  return stored.narrow(0, layer.weight.row_begin, layer.out).contiguous();
}

/// Formats parse it with parsers of their own: nothing malformed or nested too deep gets to them.
Result<std::string> checked_json(std::string text, const std::string& where) {
  const auto json = parse_strict_json(text);
  if (!json.ok()) return json.status().in(where);
  return text;
}

/// What a checkpoint says of its quantization, as JSON: config.json's "quantization_config", or else the file in which some formats
/// describe it. Empty: nothing.
Result<std::string> quantization_text(const Checkpoint& checkpoint) {
  constexpr int64_t kLargest = 100'000'000;
  constexpr const char* kKey = "quantization_config";
  SLIM_ASSIGN(std::string config, config_value(checkpoint, kKey));
  if (!config.empty())  // a string may hold whatever it likes
    return checked_json(std::move(config), checkpoint.folder() + "/config.json, " + kKey);
  for (const std::string& name : checkpoint.side_files()) {
    const bool describes = name.starts_with("quant_model_description") && name.ends_with(".json");
    if (!describes && name != "hf_quant_config.json") continue;
    const std::string path = checkpoint.folder() + "/" + name;
    SLIM_ASSIGN(std::string text, read_text(path, kLargest));
    return checked_json(std::move(text), path);
  }
  return config;
}

}  // namespace

Result<std::string> config_value(const Checkpoint& checkpoint, const char* key) {
  SLIM_ASSIGN(const auto config, parse_strict_json(checkpoint.config_json()));
  const auto it = config.find(key);
  if (it == config.end() || it->is_null()) return std::string();
  return it->is_string() ? it->get<std::string>() : it->dump();
}

Result<std::string> adapter_name(const Checkpoint& checkpoint, const std::string& wanted,
                                 PluginRegistry& registry) {
  if (!wanted.empty()) return wanted;
  SLIM_ASSIGN(const std::string model_type, config_value(checkpoint, "model_type"));
  if (model_type.empty()) {
    return Status(
        Code::kInvalidArgument,
        checkpoint.folder() +
            "/config.json has no \"model_type\", so no adapter can be chosen; name one with --adapter");
  }
  SLIM_ASSIGN(const PluginInfo info, registry.adapter_for(model_type));
  return info.id;
}

Result<std::unique_ptr<WeightSource>> WeightSource::open(const std::string& folder,
                                                         PluginRegistry& registry) {
  std::unique_ptr<WeightSource> source(new WeightSource());
  SLIM_ASSIGN(source->checkpoint_, Checkpoint::open(folder));
  source->dtype_ = common_dtype(source->checkpoint_->tensors());
  source->logical_ = source->checkpoint_->tensors();
  SLIM_TRY(source->find_stored_layers(registry));
  return source;
}

Status WeightSource::find_stored_layers(PluginRegistry& registry) {
  SLIM_ASSIGN(const std::string config, quantization_text(*checkpoint_));
  for (const PluginInfo& info : registry.list()) {
    if (info.kind != SLIM_FORMAT || !info.compatible.ok() || !info.shadowed_by.empty()) continue;
    SLIM_ASSIGN(Owned<Format> format, registry.format(info.path));
    if (!format->recognises(config, checkpoint_->side_files())) continue;
    SLIM_ASSIGN(auto layers, guarded(info.id, [&] { return format->stored_layers(*checkpoint_, config); }));
    const auto dtype = from_scalar_type(dtype_);
    for (StoredLayer& layer : layers) {
      for (const std::string& name : layer.tensors) logical_.erase(name);
      if (layer.out == 0)
        continue;  // the format's own tensors of a module that is no layer: scales of a key/value cache
      const std::string weight = layer.name + std::string(kWeightSuffix);
      logical_[weight] = {weight, *dtype, {layer.out, layer.in}};
      stored_.emplace(layer.name, std::move(layer));
    }
    format_ = std::move(format);
    format_id_ = info.id;
    quantization_ = config;
    return {};
  }
  return config.empty() ? Status{} : pass_over(config);
}

/// What no format knows is stale where nothing is quantized, and else refused with what to do.
Status WeightSource::pass_over(const std::string& quantization_config) {
  const auto json = nlohmann::json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  const bool named = json.is_object() && json.contains("quant_method") && json["quant_method"].is_string();
  const std::string method = named ? json["quant_method"].get<std::string>() : "unknown method";
  const auto in_float = [](const auto& tensor) {
    const auto type = to_scalar_type(tensor.second.dtype);
    return type && at::isFloatingType(*type) && c10::elementSize(*type) > 1;
  };
  const auto& tensors = checkpoint_->tensors();
  const bool matrices_in_float = std::all_of(tensors.begin(), tensors.end(), [&](const auto& tensor) {
    return !tensor.first.ends_with(kWeightSuffix) || in_float(tensor);
  });
  if (matrices_in_float) {
    stale_quantization_ = method;
    return {};
  }
  return {Code::kUnsupported, checkpoint_->folder() + ": its tensors are quantized by " + method +
                                  ", which no format plugin reads (`slim plugins list`); give the float "
                                  "checkpoint that it was made of, or "
                                  "decode it with transformers (model.dequantize(), then save_pretrained)"};
}

Result<std::vector<std::string>> WeightSource::contradictions(const ModelPlan& plan) const {
  if (!format_) return std::vector<std::string>{};
  OutputModel found;
  found.plan = &plan;
  found.tensors = checkpoint_->tensors();
  found.dtype = dtype_;
  for (const auto& [name, layer] : stored_) found.schemes[name] = layer.scheme;
  for (const BlockPlan& block : plan.blocks) {
    for (const Layer& layer : block.layers)
      if (!stored(layer.name)) found.ignore.push_back(layer.name);
  }
  return guarded(format_id_, [&] { return format_->contradictions(found, *checkpoint_, quantization_); });
}

bool WeightSource::describes_quantization(std::string_view file) const {
  if (!quantized()) return false;
  return file.starts_with("quant_model_description") || file == "quantize_config.json" ||
         file == "quant_config.json" || file == "hf_quant_config.json";
}

const StoredLayer* WeightSource::stored(const std::string& layer_name) const {
  const auto it = stored_.find(layer_name);
  return it == stored_.end() ? nullptr : &it->second;
}

Result<at::Tensor> WeightSource::decoded(const StoredLayer& layer,
                                         std::optional<ActivationQuantization>* activation) const {
  SLIM_ASSIGN(const Solved solved, guarded(layer.name, [&] { return format_->decode(layer, *checkpoint_); }));
  if (activation && layer.scheme.input) {
    *activation = ActivationQuantization{*layer.scheme.input, solved.input_scale, solved.input_zero};
  }
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  const at::Tensor weight = quantized ? quant::decode(*quantized) : std::get<Dense>(solved.weight).weight;
  return weight.to(dtype_);
}

const StoredLayer* WeightSource::layer_of(std::string_view weight) const {
  if (!weight.ends_with(kWeightSuffix)) return nullptr;
  return stored(std::string(weight.substr(0, weight.size() - kWeightSuffix.size())));
}

bool WeightSource::decodes(std::string_view name) const { return layer_of(name) != nullptr; }

Result<at::Tensor> WeightSource::tensor(std::string_view name) const {
  const StoredLayer* const layer = layer_of(name);
  return layer ? decoded(*layer, nullptr) : checkpoint_->read(name);
}

Result<at::Tensor> WeightSource::rows(std::string_view name, const at::Tensor& ids) const {
  return checkpoint_->read_rows(name, ids);
}

Result<at::Tensor> WeightSource::matrix(const Layer& layer) const {
  if (const StoredLayer* found = stored(layer.name)) return decoded(*found, nullptr);
  if (layer.weight.index) {
    SLIM_ASSIGN(at::Tensor entry, checkpoint_->read_entry(layer.weight.tensor, *layer.weight.index));
    return slice_of(layer, std::move(entry));
  }
  SLIM_ASSIGN(at::Tensor whole, tensor(layer.weight.tensor));
  return slice_of(layer, std::move(whole));
}

Result<BlockWeights> WeightSource::load(const BlockPlan& block) const {
  BlockWeights weights;
  for (const Layer& layer : block.layers) {
    std::optional<ActivationQuantization> activation;
    at::Tensor matrix;
    if (const StoredLayer* found = stored(layer.name)) {
      SLIM_ASSIGN(matrix, decoded(*found, &activation));
    } else {
      SLIM_ASSIGN(matrix, this->matrix(layer));
    }
    at::Tensor bias;
    if (!layer.bias.empty()) {
      SLIM_ASSIGN(bias, checkpoint_->read(layer.bias));
    }
    weights.weight.push_back(std::move(matrix));
    weights.bias.push_back(std::move(bias));
    weights.activation.push_back(std::move(activation));
  }
  for (const std::string& name : block.params) {
    SLIM_ASSIGN(weights.params[name], tensor(name));
  }
  return weights;
}

std::vector<std::string> WeightSource::stored_tensors(const BlockPlan& block) const {
  std::set<std::string> names;
  const auto add = [&](const std::string& name, const StoredLayer* found) {
    if (found) names.insert(found->tensors.begin(), found->tensors.end());
    if (checkpoint_->tensors().contains(name)) names.insert(name);
  };
  for (const Layer& layer : block.layers) {
    add(layer.weight.tensor, stored(layer.name));
    add(layer.bias, nullptr);
  }
  for (const std::string& name : block.params) add(name, layer_of(name));
  return {names.begin(), names.end()};
}

void WeightSource::prefetch(const BlockPlan& block) const {
  for (const std::string& name : stored_tensors(block)) checkpoint_->prefetch(name);
}

BlockWeights moved(BlockWeights weights, at::Device device) {
  for (at::Tensor& tensor : weights.weight) tensor = moved(tensor, device);
  for (at::Tensor& tensor : weights.bias) tensor = moved(tensor, device);
  for (auto& activation : weights.activation) {
    if (!activation) continue;
    activation->scale = moved(activation->scale, device);
    activation->zero = moved(activation->zero, device);
  }
  weights.params = moved(std::move(weights.params), device);
  return weights;
}

}  // namespace slim
