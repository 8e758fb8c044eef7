#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "common/bit_stream.hpp"
#include "common/stored_layer.hpp"
#include "config.h"
#define SLIM_PLUGIN_CLAIMS "*"
#include "slim/plugin.hpp"
#include "slim/quant.hpp"

namespace slim::compressed_tensors {
namespace {

using namespace formats;

/// Checkpoints of llm-compressor and vLLM: pack-quantized, int-quantized and float-quantized, as of compressed-tensors
/// 0.19.
class CompressedTensors final : public Format {
 public:
  c10::ScalarType scale_dtype(const Scheme&, c10::ScalarType model_dtype) const override {
    return model_dtype;
  }
  Result<std::vector<TensorSpec>> layout(const Layer&, const Scheme&,
                                         c10::ScalarType model_dtype) const override;
  Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&,
                           c10::ScalarType model_dtype) const override;
  Result<std::string> quantization_config(const OutputModel& model) const override {
    return write_config(model);
  }
  Result<std::vector<TensorSpec>> cache_layout(const CacheSite&, c10::ScalarType model_dtype) const override;
  Result<TensorMap> encode_cache(const CacheSite&, const at::Tensor& key_scale, const at::Tensor& value_scale,
                                 c10::ScalarType model_dtype) const override;
  bool recognises(std::string_view quantization_config, const std::vector<std::string>& files) const override;
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&,
                                                 std::string_view quantization_config) const override;
  Result<Solved> decode(const StoredLayer&, const TensorReader&) const override;
  Result<std::vector<std::string>> contradictions(const OutputModel& found, const TensorReader&,
                                                  std::string_view quantization_config) const override {
    SLIM_ASSIGN(const Config config, Config::parse(quantization_config));
    return config.contradictions(found);
  }
};

/// Per-tensor scales have one dimension here.
std::vector<int64_t> stored_scale_shape(const QuantArgs& args, int64_t out, int64_t in) {
  return args.granularity == Granularity::kTensor ? std::vector<int64_t>{1} : scale_shape(args, out, in);
}

/// Everything that a quantized layer is stored in, in the order of writing.
Result<std::vector<TensorSpec>> specs_of(const std::string& name, int64_t out, int64_t in,
                                         const Scheme& scheme, Dtype scale) {
  SLIM_ASSIGN(const Storage storage, storage_of(scheme));
  std::vector<TensorSpec> specs;
  const auto add = [&](const char* suffix, Dtype dtype, std::vector<int64_t> shape) {
    specs.push_back({name + suffix, dtype, std::move(shape)});
  };
  if (storage == Storage::kDense) {
    add(".weight", scale, {out, in});
    return specs;
  }
  const QuantArgs& weight = *scheme.weight;
  const std::vector<int64_t> scales = stored_scale_shape(weight, out, in);
  if (storage == Storage::kPacked) {
    add(".weight_packed", Dtype::kI32, {out, packed_words(in, weight.bits)});
    add(".weight_shape", Dtype::kI64, {2});
    if (!weight.symmetric)
      add(".weight_zero_point", Dtype::kI32, {packed_words(out, weight.bits), scales[1]});
  } else {
    add(".weight", storage == Storage::kInt ? Dtype::kI8 : Dtype::kF8E4M3, {out, in});
  }
  add(".weight_scale", scale, scales);
  if (scheme.input && !scheme.input->dynamic) {
    add(".input_scale", scale, {1});
    if (!scheme.input->symmetric) add(".input_zero_point", Dtype::kI8, {1});
  }
  return specs;
}

Result<Dtype> scale_type(c10::ScalarType model_dtype) {
  const auto dtype = from_scalar_type(model_dtype);
  if (!dtype)
    return Status(Code::kUnsupported, "compressed-tensors cannot store scales in the model's dtype");
  return *dtype;
}

Result<std::vector<TensorSpec>> CompressedTensors::layout(const Layer& layer, const Scheme& scheme,
                                                          c10::ScalarType model_dtype) const {
  SLIM_ASSIGN(const Dtype scale, scale_type(model_dtype));
  if (scheme.weight) SLIM_TRY(check_groups(layer, *scheme.weight));
  return specs_of(layer.name, layer.out, layer.in, scheme, scale);
}

Result<TensorMap> encode_dense(const Layer& layer, const TensorSpec& spec, const Solved& solved) {
  const auto* dense = std::get_if<Dense>(&solved.weight);
  if (!dense)
    return Status(Code::kInternal,
                  layer.name + ": the algorithm returned codes for a scheme that only prunes");
  if (dense->weight.sizes() != at::IntArrayRef(spec.shape))
    return Status(Code::kInternal, layer.name + ": a weight of a wrong shape");
  const at::Tensor weight = dense->weight.to(at::kCPU, *to_scalar_type(spec.dtype)).contiguous();
  if (!at::isfinite(weight).all().item<bool>())
    return Status(Code::kNumeric, layer.name + ": the pruned weight holds NaN or Inf");
  return TensorMap{{spec.name, weight}};
}

Result<TensorMap> CompressedTensors::encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                                            c10::ScalarType model_dtype) const {
  SLIM_ASSIGN(const std::vector<TensorSpec> specs, layout(layer, scheme, model_dtype));
  if (!scheme.weight) return encode_dense(layer, specs.front(), solved);
  SLIM_ASSIGN(const Quantized* quantized,
              check_result(layer, scheme, solved, scale_dtype(scheme, model_dtype)));
  if (quant::has_scattered_groups(*quantized)) {
    return Status(
        Code::kUnsupported,
        layer.name +
            ": compressed-tensors has no index of groups since 0.19; use static groups, or format gptq");
  }
  const int bits = quantized->args.bits;
  TensorMap tensors;
  for (const TensorSpec& spec : specs) {
    const std::string suffix = spec.name.substr(layer.name.size() + 1);
    at::Tensor value;
    if (suffix == "weight_packed") value = pack_rows(quantized->codes, bits);
    if (suffix == "weight_shape") value = at::tensor({layer.out, layer.in}, at::kLong);
    if (suffix == "weight_zero_point") value = pack_rows(quantized->zero.t(), bits).t().contiguous();
    if (suffix == "weight") value = quantized->codes;
    if (suffix == "weight_scale") value = quantized->scale;
    if (suffix == "input_scale") value = solved.input_scale;
    if (suffix == "input_zero_point") value = solved.input_zero;
    if (!value.defined())
      return Status(Code::kInternal,
                    layer.name + ": the algorithm found no " + suffix + " for scheme " + scheme.name);
    tensors[spec.name] = value.to(at::kCPU, *to_scalar_type(spec.dtype)).reshape(spec.shape).contiguous();
  }
  return tensors;
}

Result<std::vector<TensorSpec>> CompressedTensors::cache_layout(const CacheSite& site,
                                                                c10::ScalarType model_dtype) const {
  SLIM_ASSIGN(const Dtype scale, scale_type(model_dtype));
  return std::vector<TensorSpec>{{site.name + ".k_scale", scale, {1}}, {site.name + ".v_scale", scale, {1}}};
}

Result<TensorMap> CompressedTensors::encode_cache(const CacheSite& site, const at::Tensor& key_scale,
                                                  const at::Tensor& value_scale,
                                                  c10::ScalarType model_dtype) const {
  TensorMap tensors;
  for (const auto& [suffix, scale] : {std::pair(".k_scale", key_scale), std::pair(".v_scale", value_scale)}) {
    const at::Tensor stored = scale.to(at::kCPU, model_dtype).reshape({1});
    const float value = stored.item<float>();
    if (!std::isfinite(value) || value <= 0)
      return Status(Code::kNumeric, site.name + suffix + ": the scale is not positive and finite");
    tensors[site.name + suffix] = stored;
  }
  return tensors;
}

bool CompressedTensors::recognises(std::string_view quantization_config,
                                   const std::vector<std::string>&) const {
  const auto json = nlohmann::json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("quant_method") && json["quant_method"] == "compressed-tensors";
}

// ---- reading --------------------------------------------------------------------------------------------------------

constexpr std::string_view kSuffixes[] = {".weight_packed", ".weight_shape", ".weight_zero_point",
                                          ".weight_scale",  ".input_scale",  ".input_zero_point"};

Result<std::pair<int64_t, int64_t>> stored_shape(const std::string& module, Storage storage,
                                                 const TensorReader& reader) {
  const auto& tensors = reader.tensors();
  if (storage != Storage::kPacked) {
    const auto weight = tensors.find(module + ".weight");
    if (weight == tensors.end()) return corrupt(module, "tensor " + module + ".weight is missing");
    const auto& shape = weight->second.shape;
    if (shape.size() != 2)
      return corrupt(weight->first, "expected two dimensions, found " + shape_string(shape));
    return std::pair{shape[0], shape[1]};
  }
  const std::string name = module + ".weight_shape";
  const auto spec = tensors.find(name);
  if (spec == tensors.end()) return corrupt(module, "tensor " + name + " is missing");
  if (spec->second.dtype != Dtype::kI64 || spec->second.shape != std::vector<int64_t>{2}) {
    return corrupt(name, "expected I64 [2], found " + std::string(dtype_name(spec->second.dtype)) + " " +
                             shape_string(spec->second.shape));
  }
  SLIM_ASSIGN(const at::Tensor shape, reader.read(name));
  const auto* values = shape.const_data_ptr<int64_t>();
  constexpr int64_t kLargest = int64_t{1} << 31;
  if (values[0] <= 0 || values[1] <= 0 || values[0] > kLargest || values[1] > kLargest) {
    return corrupt(name, "a weight of " + std::to_string(values[0]) + " x " + std::to_string(values[1]) +
                             " is impossible");
  }
  return std::pair{values[0], values[1]};
}

Result<StoredLayer> stored_layer(const std::string& module, const Scheme& scheme,
                                 const TensorReader& reader) {
  Result<Storage> storage = storage_of(scheme);
  if (!storage.ok()) return storage.status().in(module);
  SLIM_ASSIGN(const auto shape, stored_shape(module, *storage, reader));
  const auto scale = reader.tensors().find(module + ".weight_scale");
  if (scale == reader.tensors().end())
    return corrupt(module, "tensor " + module + ".weight_scale is missing");
  const Dtype type = scale->second.dtype;
  if (type != Dtype::kBF16 && type != Dtype::kF16 && type != Dtype::kF32) {
    return corrupt(scale->first, "expected BF16, F16 or F32, found " + std::string(dtype_name(type)));
  }
  SLIM_ASSIGN(const std::vector<TensorSpec> expected,
              specs_of(module, shape.first, shape.second, scheme, type));
  SLIM_TRY(check_tensors(module, expected, reader.tensors(), kSuffixes));
  StoredLayer layer{module, shape.first, shape.second, scheme, {}};
  for (const TensorSpec& spec : expected) layer.tensors.push_back(spec.name);
  return layer;
}

constexpr std::string_view kCacheSuffixes[] = {".k_scale", ".v_scale"};

/// Scales of an FP8 cache belong to an attention, which is no layer: listed without a shape, and checked here.
Status add_caches(const TensorReader& reader, std::vector<StoredLayer>& layers) {
  for (const std::string& module : modules_with(reader.tensors(), kCacheSuffixes)) {
    StoredLayer cache{module, 0, 0, {}, {}};
    for (const std::string_view suffix : kCacheSuffixes) {
      const std::string name = module + std::string(suffix);
      SLIM_ASSIGN(const TensorSpec spec, find_tensor(module, name, reader.tensors()));
      if (spec.shape != std::vector<int64_t>{1})
        return corrupt(name, "expected shape [1], found " + shape_string(spec.shape));
      SLIM_TRY(read_scale(reader, name).status());
      cache.tensors.push_back(name);
    }
    layers.push_back(std::move(cache));
  }
  return {};
}

Result<std::vector<StoredLayer>> CompressedTensors::stored_layers(
    const TensorReader& reader, std::string_view quantization_config) const {
  SLIM_ASSIGN(const Config config, Config::parse(quantization_config));
  std::vector<StoredLayer> layers;
  for (const std::string& module : modules_with(reader.tensors(), kSuffixes)) {
    const Scheme* scheme = config.find(module);
    if (!scheme)
      return corrupt(module, "has quantized tensors, but no group of quantization_config covers it");
    SLIM_ASSIGN(StoredLayer layer, stored_layer(module, *scheme, reader));
    layers.push_back(std::move(layer));
  }
  SLIM_TRY(add_caches(reader, layers));
  return layers;
}

Result<at::Tensor> read_codes(const StoredLayer& layer, const TensorReader& reader, Storage storage) {
  if (storage == Storage::kPacked) {
    SLIM_ASSIGN(const at::Tensor packed, reader.read(layer.name + ".weight_packed"));
    return unpack_rows(packed, layer.scheme.weight->bits, layer.in);
  }
  if (storage == Storage::kInt) return reader.read(layer.name + ".weight");
  SLIM_ASSIGN(at::Tensor codes, reader.read(layer.name + ".weight"));
  // E4M3 has no infinity; its two NaN bytes are 0x7f and 0xff.
  if (at::any(codes.view(at::kByte).bitwise_and(0x7f).eq(0x7f)).item<bool>())
    return corrupt(layer.name + ".weight", "holds NaN");
  return codes;
}

Result<Solved> CompressedTensors::decode(const StoredLayer& layer, const TensorReader& reader) const {
  SLIM_ASSIGN(const Storage storage, storage_of(layer.scheme));
  const QuantArgs& args = *layer.scheme.weight;
  Quantized quantized{args, {}, {}, {}, {}};
  SLIM_ASSIGN(quantized.codes, read_codes(layer, reader, storage));
  SLIM_ASSIGN(const at::Tensor scale, read_scale(reader, layer.name + ".weight_scale"));
  quantized.scale = args.granularity == Granularity::kTensor ? scale.view({1, 1}) : scale;
  if (!args.symmetric) {
    SLIM_ASSIGN(const at::Tensor packed, reader.read(layer.name + ".weight_zero_point"));
    quantized.zero = unpack_rows(packed.t(), args.bits, layer.out).t().contiguous();
  }
  Solved solved;
  solved.weight = std::move(quantized);
  if (layer.scheme.input && !layer.scheme.input->dynamic) {
    SLIM_ASSIGN(solved.input_scale, read_scale(reader, layer.name + ".input_scale"));
    if (!layer.scheme.input->symmetric) {
      SLIM_ASSIGN(solved.input_zero, reader.read(layer.name + ".input_zero_point"));
    }
  }
  return solved;
}

}  // namespace
}  // namespace slim::compressed_tensors
SLIM_FORMAT_PLUGIN("compressed-tensors", slim::compressed_tensors::CompressedTensors,
                   "compressed-tensors checkpoints for vLLM and transformers")
