#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "common/stored_layer.hpp"
#include "slim/plugin.hpp"

namespace slim::fp8_format {
namespace {

using namespace formats;
using Json = nlohmann::ordered_json;

constexpr std::string_view kBlockScale = ".weight_scale_inv", kTensorScale = ".weight_scale",
                           kInputScale = ".input_scale";
constexpr std::string_view kSuffixes[] = {kBlockScale, kTensorScale, kInputScale};
constexpr std::string_view kCacheSuffixes[] = {".k_scale", ".v_scale"};

bool is_e4m3(const std::optional<QuantArgs>& args) {
  return args && args->type == NumberType::kFloat && args->bits == 8;
}

/// Checkpoints with `quant_method: fp8`, as Qwen and DeepSeek publish theirs and transformers' FineGrainedFP8 and vLLM load them: E4M3 weights
/// with a scale for each block of 128 x 128 ("weight_scale_inv": real = stored * scale, in spite of its name), or one for the matrix
/// ("weight_scale"); activations dynamic, or static with "input_scale". Also read: what NVIDIA's ModelOpt writes for its algorithm FP8, which
/// holds the same tensors.
class Fp8Format final : public Format {
 public:
  c10::ScalarType scale_dtype(const Scheme& scheme, c10::ScalarType model_dtype) const override {
    return in_blocks(scheme) ? model_dtype : c10::ScalarType::Float;
  }
  Result<std::vector<TensorSpec>> layout(const Layer&, const Scheme&,
                                         c10::ScalarType model_dtype) const override;
  Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&,
                           c10::ScalarType model_dtype) const override;
  Result<std::string> quantization_config(const OutputModel&) const override;
  bool recognises(std::string_view quantization_config, const std::vector<std::string>& files) const override;
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&,
                                                 std::string_view quantization_config) const override;
  Result<Solved> decode(const StoredLayer&, const TensorReader&) const override;

 private:
  static bool in_blocks(const Scheme& scheme) {
    return scheme.weight && scheme.weight->granularity == Granularity::kBlock;
  }
};

/// The tensors of a layer, the weight first.
std::vector<TensorSpec> specs_of(const std::string& name, int64_t out, int64_t in, const Scheme& scheme,
                                 Dtype scale) {
  const auto tensor = [&](std::string_view suffix, Dtype dtype, std::vector<int64_t> shape) {
    return TensorSpec{name + std::string(suffix), dtype, std::move(shape)};
  };
  std::vector<TensorSpec> specs = {tensor(".weight", Dtype::kF8E4M3, {out, in})};
  if (scheme.weight->granularity == Granularity::kBlock)
    specs.push_back(tensor(kBlockScale, scale, scale_shape(*scheme.weight, out, in)));
  else
    specs.push_back(tensor(kTensorScale, scale, {1}));
  if (scheme.input && !scheme.input->dynamic) specs.push_back(tensor(kInputScale, scale, {1}));
  return specs;
}

// ---- writing --------------------------------------------------------------------------------------------------------

Result<std::vector<TensorSpec>> Fp8Format::layout(const Layer& layer, const Scheme& scheme,
                                                  c10::ScalarType model_dtype) const {
  const bool weight =
      is_e4m3(scheme.weight) && (in_blocks(scheme) || scheme.weight->granularity == Granularity::kTensor);
  if (!weight || !is_e4m3(scheme.input) || scheme.sparsity) {
    return Status(Code::kUnsupported,
                  layer.name +
                      ": format fp8 holds E4M3 weights and activations, in blocks or per tensor "
                      "(fp8_block, fp8_dynamic_tensor, fp8_static), not scheme " +
                      scheme.name);
  }
  const auto scale = from_scalar_type(scale_dtype(scheme, model_dtype));
  if (!scale)
    return Status(Code::kUnsupported, layer.name + ": format fp8 cannot store scales in the model's dtype");
  return specs_of(layer.name, layer.out, layer.in, scheme, *scale);
}

Result<TensorMap> Fp8Format::encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                                    c10::ScalarType model_dtype) const {
  SLIM_ASSIGN(const std::vector<TensorSpec> specs, layout(layer, scheme, model_dtype));
  SLIM_ASSIGN(const Quantized* quantized,
              check_result(layer, scheme, solved, scale_dtype(scheme, model_dtype)));
  TensorMap tensors;
  for (const TensorSpec& spec : specs) {
    const std::string_view suffix = std::string_view(spec.name).substr(layer.name.size());
    const at::Tensor& value = suffix == ".weight"     ? quantized->codes
                              : suffix == kInputScale ? solved.input_scale
                                                      : quantized->scale;
    if (!value.defined())
      return Status(Code::kInternal, spec.name + ": the algorithm found none for scheme " + scheme.name);
    tensors[spec.name] = value.to(at::kCPU, *to_scalar_type(spec.dtype)).reshape(spec.shape).contiguous();
  }
  return tensors;
}

Result<std::string> Fp8Format::quantization_config(const OutputModel& model) const {
  const Scheme* first = nullptr;
  for (const auto& [name, scheme] : model.schemes) {
    if (first && !(scheme == *first))
      return Status(Code::kUnsupported, "format fp8 holds one scheme for all layers, found " + first->name +
                                            " and " + scheme.name + "; choose --format compressed-tensors");
    first = &scheme;
  }
  Json json = {{"quant_method", "fp8"},
               {"fmt", "e4m3"},
               {"activation_scheme", first && first->input && !first->input->dynamic ? "static" : "dynamic"}};
  if (first && in_blocks(*first))
    json["weight_block_size"] = {first->weight->block_rows, first->weight->block_columns};
  auto in_float = Json::array();
  for (const BlockPlan& block : model.plan->blocks) {
    for (const Layer& layer : block.layers) {
      if (!model.schemes.contains(layer.name)) in_float.push_back(layer.name);
    }
  }
  for (const std::string& name : modules_beside(model)) in_float.push_back(name);
  json["modules_to_not_convert"] = in_float;
  return json.dump();
}

// ---- reading --------------------------------------------------------------------------------------------------------

/// True for what ModelOpt says of its algorithm FP8: in config.json, where older versions name no method, or in hf_quant_config.json.
bool is_modelopt_fp8(const Json& json) {
  const auto producer = json.find("producer"), inner = json.find("quantization");
  const bool produced =
      producer != json.end() && producer->is_object() && producer->value("name", Json()) == "modelopt";
  const Json& values = inner != json.end() && inner->is_object() ? *inner : json;
  return json.value("quant_method", Json(produced ? "modelopt" : "")) == "modelopt" &&
         values.value("quant_algo", Json()) == "FP8";
}

/// What quantization_config says of all layers.
Result<Scheme> read_scheme(std::string_view config) {
  const auto json = Json::parse(config, nullptr, /*allow_exceptions=*/false);
  const auto fail = [](const std::string& what) { return corrupt("quantization_config", what); };
  if (!json.is_object()) return fail("is no object");
  if (is_modelopt_fp8(json)) return scheme_from_name("fp8_static");
  const auto activation = json.find("activation_scheme");
  const bool fixed = activation != json.end() && *activation == "static";
  const auto size = json.find("weight_block_size");
  if (size == json.end() || size->is_null())
    return scheme_from_name(fixed ? "fp8_static" : "fp8_dynamic_tensor");
  constexpr int64_t kLargest = 1 << 16;
  const auto side = [&](size_t i) {
    const Json& value = (*size)[i];
    return value.is_number_integer() && value >= 1 && value <= kLargest ? value.get<int64_t>() : 0;
  };
  if (!size->is_array() || size->size() != 2 || side(0) == 0 || side(1) == 0)
    return fail("weight_block_size has to be two positive integers, found " + size->dump().substr(0, 40));
  SLIM_ASSIGN(Scheme scheme, scheme_from_name("fp8_block"));
  scheme.weight->block_rows = side(0);
  scheme.weight->block_columns = side(1);
  return scheme;
}

bool Fp8Format::recognises(std::string_view quantization_config, const std::vector<std::string>&) const {
  const auto json = Json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && (json.value("quant_method", Json()) == "fp8" || is_modelopt_fp8(json));
}

/// A scale of one number is stored with a dimension or without.
Status check_scale(const TensorSpec& found, const TensorSpec& expected) {
  const bool single = expected.shape == std::vector<int64_t>{1} && found.shape.empty();
  if (found.dtype != Dtype::kBF16 && found.dtype != Dtype::kF16 && found.dtype != Dtype::kF32)
    return corrupt(found.name, "expected BF16, F16 or F32, found " + std::string(dtype_name(found.dtype)));
  if (!single && found.shape != expected.shape)
    return corrupt(found.name,
                   "expected shape " + shape_string(expected.shape) + ", found " + shape_string(found.shape));
  return {};
}

Result<StoredLayer> stored_layer(const std::string& module, const Scheme& scheme,
                                 const std::map<std::string, TensorSpec>& tensors) {
  SLIM_ASSIGN(const TensorSpec weight, find_tensor(module, module + ".weight", tensors));
  if (weight.dtype != Dtype::kF8E4M3 || weight.shape.size() != 2)
    return corrupt(weight.name, "expected F8_E4M3 with two dimensions, found " +
                                    std::string(dtype_name(weight.dtype)) + " " + shape_string(weight.shape));
  StoredLayer layer{module, weight.shape[0], weight.shape[1], scheme, {}};
  for (const TensorSpec& expected : specs_of(module, layer.out, layer.in, scheme, Dtype::kF32)) {
    SLIM_ASSIGN(const TensorSpec found, find_tensor(module, expected.name, tensors));
    if (found.name != weight.name) SLIM_TRY(check_scale(found, expected));
    layer.tensors.push_back(found.name);
  }
  // Writers may leave an unused input scale beside dynamic activations.
  const std::string unused = module + std::string(kInputScale);
  if (tensors.contains(unused) && layer.tensors.back() != unused) layer.tensors.push_back(unused);
  return layer;
}

Result<std::vector<StoredLayer>> Fp8Format::stored_layers(const TensorReader& reader,
                                                          std::string_view quantization_config) const {
  SLIM_ASSIGN(const Scheme scheme, read_scheme(quantization_config));
  std::set<std::string> modules = modules_with(reader.tensors(), kSuffixes);
  constexpr std::string_view kWeight = ".weight";
  for (const auto& [name, spec] : reader.tensors()) {  // a weight whose scale is missing, too
    if (spec.dtype == Dtype::kF8E4M3 && name.ends_with(kWeight))
      modules.insert(name.substr(0, name.size() - kWeight.size()));
  }
  std::vector<StoredLayer> layers;
  for (const std::string& module : modules) {
    SLIM_ASSIGN(StoredLayer layer, stored_layer(module, scheme, reader.tensors()));
    layers.push_back(std::move(layer));
  }
  for (const std::string_view suffix : kCacheSuffixes) {
    for (const std::string& module : modules_with(reader.tensors(), {&suffix, 1}))
      layers.push_back({module, 0, 0, scheme, {module + std::string(suffix)}});
  }
  return layers;
}

Result<Solved> Fp8Format::decode(const StoredLayer& layer, const TensorReader& reader) const {
  Quantized quantized{*layer.scheme.weight, {}, {}, {}, {}};
  SLIM_ASSIGN(quantized.codes, reader.read(layer.name + ".weight"));
  // E4M3 has no infinity; its two NaN bytes are 0x7f and 0xff.
  if (at::any(quantized.codes.view(at::kByte).bitwise_and(0x7f).eq(0x7f)).item<bool>())
    return corrupt(layer.name + ".weight", "holds NaN");
  const bool blocks = in_blocks(layer.scheme);
  SLIM_ASSIGN(const at::Tensor scale,
              read_scale(reader, layer.name + std::string(blocks ? kBlockScale : kTensorScale)));
  quantized.scale = blocks ? scale : scale.reshape({1, 1});
  Solved solved;
  solved.weight = std::move(quantized);
  if (layer.scheme.input && !layer.scheme.input->dynamic) {
    SLIM_ASSIGN(const at::Tensor input, read_scale(reader, layer.name + std::string(kInputScale)));
    solved.input_scale = input.reshape({1});
  }
  return solved;
}

}  // namespace
}  // namespace slim::fp8_format

SLIM_FORMAT_PLUGIN("fp8", slim::fp8_format::Fp8Format,
                   "FP8 checkpoints with quant_method fp8, for transformers, vLLM and SGLang")
