#include <ATen/ATen.h>

#include "description.h"
#include "slim/plugin.hpp"
#include "values.h"

namespace slim::ascend {
namespace {

/// What a layer is, and how its tensors are typed.
struct Storage {
  Type type = Type::kW8A8S;
  int64_t out = 0, in = 0;
  int64_t groups = 1;         ///< scales of a row
  bool one_scale = false;     ///< W8A8S: one for the whole matrix
  Dtype scale = Dtype::kF32;
  Dtype deq_scale = Dtype::kF32;  ///< I64: the bits of a float32, for fp16 models
};

std::vector<TensorSpec> specs_of(const std::string& name, const Storage& storage) {
  std::vector<TensorSpec> specs;
  const auto add = [&](const char* suffix, Dtype dtype, std::vector<int64_t> shape) {
    specs.push_back({name + suffix, dtype, std::move(shape)});
  };
  add(".weight", Dtype::kI8, {storage.type == Type::kW4A16 ? storage.out / 2 : storage.out, storage.in});
  if (is_static(storage.type)) {
    add(".input_scale", storage.scale, {1});
    add(".input_offset", storage.scale, {1});
    add(".deq_scale", storage.deq_scale, {storage.one_scale ? 1 : storage.out});
    add(".quant_bias", Dtype::kI32, {storage.out});
  }
  if (storage.type != Type::kW8A8S) {
    add(".weight_scale", storage.scale, {storage.out, storage.groups});
    add(".weight_offset", storage.scale, {storage.out, storage.groups});
  }
  return specs;
}

Result<Storage> storage_of(const Layer& layer, const Scheme& scheme, c10::ScalarType model_dtype) {
  Storage storage;
  SLIM_ASSIGN(storage.type, type_of(scheme));
  storage.out = layer.out;
  storage.in = layer.in;
  storage.one_scale = scheme.weight->granularity == Granularity::kTensor;
  if (scheme.weight->granularity == Granularity::kGroup) {
    if (layer.in % scheme.weight->group_size != 0) {
      return Status(Code::kUnsupported, layer.name + ": groups of " + std::to_string(scheme.weight->group_size) +
                                            " do not divide its " + std::to_string(layer.in) +
                                            " input channels; choose another group size, or ignore this layer");
    }
    storage.groups = layer.in / scheme.weight->group_size;
  }
  if (storage.type == Type::kW4A16 && layer.out % 2 != 0) {
    return Status(Code::kUnsupported, layer.name + ": W4A16 stores rows in pairs, found " + std::to_string(layer.out) +
                                          " rows; ignore this layer, or use compressed-tensors");
  }
  const auto scale = from_scalar_type(scale_dtype(storage.type, model_dtype));
  if (!scale) return Status(Code::kUnsupported, "format ascend cannot store scales in the model's dtype");
  storage.scale = *scale;
  storage.deq_scale = model_dtype == at::kHalf ? Dtype::kI64 : Dtype::kF32;
  return storage;
}

// ---- writing
// ----------------------------------------------------------------------------------------------------------

Status check_result(const Layer& layer, const Scheme& scheme, const Storage& storage, const Solved& solved) {
  const auto wrong = [&](const std::string& what) {
    return Status(Code::kInternal, layer.name + ": the algorithm's result has " + what);
  };
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  if (!quantized) return wrong("a float weight for scheme " + scheme.name);
  if (quantized->args != *scheme.weight) return wrong("another quantization than scheme " + scheme.name);
  if (quantized->codes.sizes() != at::IntArrayRef({layer.out, layer.in})) return wrong("codes of a wrong shape");
  const int64_t scales = storage.one_scale ? 1 : layer.out * storage.groups;
  if (!quantized->scale.defined() || quantized->scale.numel() != scales) return wrong("scales of a wrong shape");
  if (quantized->zero.defined() && quantized->zero.numel() != scales) return wrong("zero points of a wrong shape");
  if (quantized->group_index.defined()) {
    const at::Tensor plain = at::arange(layer.in, at::kInt).div(quantized->args.group_size, "floor");
    if (!at::equal(quantized->group_index.cpu().to(at::kInt), plain)) {
      return {Code::kUnsupported, layer.name + ": format ascend has no index of groups; use static activation order"};
    }
  }
  if (is_static(storage.type) && !solved.input_scale.defined()) return wrong("no scale of the input");
  if (is_static(storage.type) && !layer.bias.empty() && !solved.bias.defined())
    return wrong("no bias, which quant_bias takes up");
  return {};
}

Status encode_static(const Layer& layer, const Storage& storage, const Solved& solved, TensorMap& tensors) {
  const auto& quantized = std::get<Quantized>(solved.weight);
  const auto dtype = *to_scalar_type(storage.scale);
  const at::Tensor input_scale = solved.input_scale.cpu().to(dtype).view({1});
  const at::Tensor offset = solved.input_zero.defined() ? solved.input_zero.cpu().view({1}) : at::zeros({1}, at::kChar);
  const at::Tensor deq_scale = (input_scale * quantized.scale.cpu().to(dtype).reshape({-1})).to(at::kFloat);
  if (!at::isfinite(deq_scale).all().item<bool>() || !(deq_scale > 0).all().item<bool>()) {
    return {Code::kNumeric, layer.name + ": deq_scale = input_scale * weight_scale under- or overflows"};
  }
  Result<at::Tensor> bias =
      quant_bias(quantized.codes.cpu(), deq_scale, offset, layer.bias.empty() ? at::Tensor() : solved.bias.cpu());
  if (!bias.ok()) return bias.status().in(layer.name);
  tensors[layer.name + ".input_scale"] = input_scale;
  tensors[layer.name + ".input_offset"] = offset.to(dtype);
  tensors[layer.name + ".deq_scale"] = storage.deq_scale == Dtype::kI64 ? float_bits(deq_scale) : deq_scale;
  tensors[layer.name + ".quant_bias"] = *bias;
  return {};
}

/// Checkpoints for Ascend NPUs (MindIE, vLLM-Ascend) as msmodelslim's Calibrator writes them ("ascendV1").
class Ascend final : public Format {
 public:
  c10::ScalarType scale_dtype(const Scheme& scheme, c10::ScalarType model_dtype) const override {
    const Result<Type> type = type_of(scheme);
    return type.ok() ? ascend::scale_dtype(*type, model_dtype) : model_dtype;
  }
  Result<std::vector<TensorSpec>> layout(const Layer& layer, const Scheme& scheme,
                                         c10::ScalarType model_dtype) const override {
    SLIM_ASSIGN(const Storage storage, storage_of(layer, scheme, model_dtype));
    return specs_of(layer.name, storage);
  }
  Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&, c10::ScalarType model_dtype) const override;
  /// The types are in the description; config.json only names the model's.
  Result<std::string> quantization_config(const OutputModel&) const override { return std::string(); }
  Result<std::map<std::string, std::string>> config_entries(const OutputModel& output) const override {
    SLIM_ASSIGN(const Type type, model_type(output));
    const std::string value = "\"" + lower_name(type) + "\"";
    return std::map<std::string, std::string>{
        {"quantize", value}, {"text_config.quantize", value}, {"vision_config.quantize", value}};
  }
  std::string weights_stem(const Scheme& scheme) const override {
    const Result<Type> type = type_of(scheme);
    return type.ok() ? "quant_model_weight_" + lower_name(*type) : "model";
  }
  Result<std::map<std::string, std::string>> side_files(const OutputModel& output) const override {
    SLIM_ASSIGN(const std::string text, write_description(output));
    return std::map<std::string, std::string>{{"quant_model_description.json", text}};
  }
  bool recognises(std::string_view description, const std::vector<std::string>&) const override {
    return Description::recognises(description);
  }
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&, std::string_view description) const override;
  Result<Solved> decode(const StoredLayer&, const TensorReader&) const override;
};

Result<TensorMap> Ascend::encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                                 c10::ScalarType model_dtype) const {
  SLIM_ASSIGN(const Storage storage, storage_of(layer, scheme, model_dtype));
  SLIM_TRY(check_result(layer, scheme, storage, solved));
  const auto& quantized = std::get<Quantized>(solved.weight);
  const at::Tensor codes = quantized.codes.cpu().contiguous();
  TensorMap tensors;
  tensors[layer.name + ".weight"] = storage.type == Type::kW4A16 ? pack_row_pairs(codes) : codes;
  if (is_static(storage.type)) SLIM_TRY(encode_static(layer, storage, solved, tensors));
  if (storage.type == Type::kW8A8S) return tensors;
  const auto dtype = *to_scalar_type(storage.scale);
  const at::Tensor scale = quantized.scale.cpu().to(dtype).reshape({layer.out, storage.groups}).contiguous();
  const at::Tensor offset =
      quantized.zero.defined() ? quantized.zero.cpu().to(dtype).reshape_as(scale).contiguous() : at::zeros_like(scale);
  tensors[layer.name + ".weight_scale"] = scale;
  tensors[layer.name + ".weight_offset"] = offset;
  return tensors;
}

// ---- reading
// ----------------------------------------------------------------------------------------------------------

Status corrupt(const std::string& where, const std::string& what) { return {Code::kCorrupt, where + ": " + what}; }

Result<Type> readable_type(const std::string& module, const std::string& name) {
  for (const Type type : {Type::kW4A16, Type::kW8A16, Type::kW8A8Dynamic, Type::kW8A8, Type::kW8A8S}) {
    if (type_name(type) == name) return type;
  }
  const bool compressed = name == "W8A8SC" || name == "W8A8S_SLIM";
  return Status(Code::kUnsupported, module + ": slim does not read type " + name +
                                        (compressed ? "; unpack it with `slim compress --decompress`"
                                                    : ", which quant_model_description.json names"));
}

Result<const TensorSpec*> find_spec(const std::string& name, const TensorReader& reader, size_t dimensions) {
  const auto found = reader.tensors().find(name);
  if (found == reader.tensors().end()) return corrupt(name, "the tensor is missing");
  if (found->second.shape.size() != dimensions) {
    return corrupt(name, "expected " + std::to_string(dimensions) + " dimensions, found shape " +
                             shape_string(found->second.shape));
  }
  return &found->second;
}

/// What the shapes and dtypes say of a module of this type.
Result<Storage> stored_form(const std::string& module, Type type, const TensorReader& reader) {
  Storage storage;
  storage.type = type;
  SLIM_ASSIGN(const TensorSpec* weight, find_spec(module + ".weight", reader, 2));
  storage.out = weight->shape[0] * (type == Type::kW4A16 ? 2 : 1);
  storage.in = weight->shape[1];
  if (is_static(type)) {
    SLIM_ASSIGN(const TensorSpec* deq_scale, find_spec(module + ".deq_scale", reader, 1));
    SLIM_ASSIGN(const TensorSpec* input_scale, find_spec(module + ".input_scale", reader, 1));
    storage.deq_scale = deq_scale->dtype == Dtype::kI64 ? Dtype::kI64 : Dtype::kF32;
    storage.one_scale = type == Type::kW8A8S && deq_scale->shape[0] == 1;
    storage.scale = input_scale->dtype;
  } else {
    SLIM_ASSIGN(const TensorSpec* scale, find_spec(module + ".weight_scale", reader, 2));
    storage.groups = scale->shape[1];
    storage.scale = scale->dtype;
  }
  if (storage.out <= 0 || storage.in <= 0 || storage.groups <= 0 || storage.in % storage.groups != 0) {
    return corrupt(
        module, std::to_string(storage.groups) + " scales a row do not fit its weight " + shape_string(weight->shape));
  }
  if (storage.scale != Dtype::kBF16 && storage.scale != Dtype::kF16 && storage.scale != Dtype::kF32) {
    return corrupt(module, "scales are " + std::string(dtype_name(storage.scale)) + ", expected BF16, F16 or F32");
  }
  return storage;
}

Scheme scheme_of(const Storage& storage, bool asymmetric) {
  QuantArgs weight;
  weight.bits = storage.type == Type::kW4A16 ? 4 : 8;
  const bool grouped = storage.groups > 1 || storage.type == Type::kW4A16;
  weight.granularity = storage.one_scale ? Granularity::kTensor : grouped ? Granularity::kGroup : Granularity::kChannel;
  if (grouped) weight.group_size = storage.in / storage.groups;
  weight.symmetric = !asymmetric;
  Scheme scheme;
  scheme.weight = weight;
  const char* name = storage.type == Type::kW4A16         ? "w4a16"
                     : storage.type == Type::kW8A16       ? "w8a16"
                     : storage.type == Type::kW8A8Dynamic ? "w8a8"
                     : storage.type == Type::kW8A8        ? "w8a8_static"
                                                          : "w8a8s";
  if (const Result<Scheme> known = scheme_from_name(name); known.ok()) scheme.input = known->input;
  scheme.name = std::string(name) + (asymmetric ? "_asym" : "");
  return scheme;
}

Status check_tensors(const std::string& module, const std::vector<TensorSpec>& expected, const TensorReader& reader,
                     bool v1) {
  for (const TensorSpec& spec : expected) {
    const auto found = reader.tensors().find(spec.name);
    if (found == reader.tensors().end()) {
      if (v1 && spec.name.find(".weight_") != std::string::npos) continue;
      return corrupt(module, "tensor " + spec.name + " is missing");
    }
    if (found->second.dtype != spec.dtype || found->second.shape != spec.shape) {
      return corrupt(spec.name, "expected " + std::string(dtype_name(spec.dtype)) + " " + shape_string(spec.shape) +
                                    ", found " + std::string(dtype_name(found->second.dtype)) + " " +
                                    shape_string(found->second.shape));
    }
  }
  return {};
}

Result<StoredLayer> stored_layer(const std::string& module, const std::string& type_text, const TensorReader& reader) {
  SLIM_ASSIGN(const Type type, readable_type(module, type_text));
  SLIM_ASSIGN(const Storage storage, stored_form(module, type, reader));
  const std::vector<TensorSpec> expected = specs_of(module, storage);
  // msmodelslim's second generation leaves weight_scale and weight_offset of W8A8 out.
  SLIM_TRY(check_tensors(module, expected, reader, type == Type::kW8A8));
  bool asymmetric = false;
  if (!is_static(type)) {
    SLIM_ASSIGN(const at::Tensor offset, reader.read(module + ".weight_offset"));
    asymmetric = (offset.to(at::kFloat) != 0).any().item<bool>();
  }
  StoredLayer layer{module, storage.out, storage.in, scheme_of(storage, asymmetric), {}};
  for (const TensorSpec& spec : expected) {
    if (reader.tensors().contains(spec.name)) layer.tensors.push_back(spec.name);
  }
  return layer;
}

Result<std::vector<StoredLayer>> Ascend::stored_layers(const TensorReader& reader, std::string_view text) const {
  SLIM_ASSIGN(const Description description, Description::parse(text));
  SLIM_TRY(description.check(reader.tensors()));
  std::vector<StoredLayer> layers;
  for (const auto& [name, type] : description.types()) {
    if (type == "FLOAT" || !name.ends_with(".weight")) continue;
    SLIM_ASSIGN(StoredLayer layer, stored_layer(name.substr(0, name.size() - 7), type, reader));
    layers.push_back(std::move(layer));
  }
  return layers;
}

Result<at::Tensor> read_scale(const TensorReader& reader, const std::string& name) {
  SLIM_ASSIGN(const at::Tensor tensor, reader.read(name));
  const bool bits = tensor.scalar_type() == at::kLong;
  Result<at::Tensor> scale = bits ? bits_float(tensor) : Result<at::Tensor>(tensor.to(at::kFloat));
  if (!scale.ok()) return scale.status().in(name);
  if (!at::isfinite(*scale).all().item<bool>() || !(*scale > 0).all().item<bool>()) {
    return corrupt(name, "scales must be positive and finite");
  }
  return scale;
}

Result<at::Tensor> read_offset(const TensorReader& reader, const std::string& name, int64_t least, int64_t largest) {
  SLIM_ASSIGN(const at::Tensor tensor, reader.read(name));
  const at::Tensor offset = tensor.to(at::kFloat);
  const at::Tensor valid = (offset >= least).logical_and(offset <= largest).logical_and(offset == offset.round());
  if (!valid.all().item<bool>()) {
    return corrupt(name, "offsets must be integers from " + std::to_string(least) + " to " + std::to_string(largest));
  }
  return offset.to(at::kChar);
}

/// The scale of the weights, and the static input parameters into `solved`; quant_bias is checked against what it must
/// be.
Result<at::Tensor> decode_static(const StoredLayer& layer, const TensorReader& reader, const at::Tensor& codes,
                                 Solved& solved) {
  SLIM_ASSIGN(solved.input_scale, read_scale(reader, layer.name + ".input_scale"));
  SLIM_ASSIGN(solved.input_zero, read_offset(reader, layer.name + ".input_offset", -128, 127));
  SLIM_ASSIGN(const at::Tensor deq_scale, read_scale(reader, layer.name + ".deq_scale"));
  SLIM_ASSIGN(const at::Tensor stored, reader.read(layer.name + ".quant_bias"));
  at::Tensor bias;
  if (reader.tensors().contains(layer.name + ".bias")) {
    SLIM_ASSIGN(bias, reader.read(layer.name + ".bias"));
    if (bias.numel() != layer.out)
      return corrupt(layer.name + ".bias",
                     "expected " + shape_string({layer.out}) + ", found " + shape_string(bias.sizes().vec()));
  }
  Result<at::Tensor> expected = quant_bias(codes, deq_scale, solved.input_zero, bias);
  if (!expected.ok()) return expected.status().in(layer.name);
  // Other writers compute it in fp32: one unit, or its last bit.
  const at::Tensor wanted = expected->to(at::kDouble);
  const at::Tensor allowed = (wanted.abs() * 0x1p-22).clamp_min(1);
  const int64_t wrong = ((stored.to(at::kDouble) - wanted).abs() > allowed).sum().item<int64_t>();
  if (wrong > 0) {
    return corrupt(layer.name + ".quant_bias",
                   std::to_string(wrong) + " of " + std::to_string(layer.out) +
                       " rows are not round(bias / deq_scale - input_offset * sum of the row)");
  }
  return (deq_scale / solved.input_scale).reshape({-1, 1});
}

Result<Solved> Ascend::decode(const StoredLayer& layer, const TensorReader& reader) const {
  const QuantArgs& args = *layer.scheme.weight;
  Solved solved;
  Quantized quantized;
  quantized.args = args;
  SLIM_ASSIGN(quantized.codes, reader.read(layer.name + ".weight"));
  if (args.bits == 4) quantized.codes = unpack_row_pairs(quantized.codes);
  if (layer.scheme.input && !layer.scheme.input->dynamic) {
    SLIM_ASSIGN(quantized.scale, decode_static(layer, reader, quantized.codes, solved));
  } else {
    SLIM_ASSIGN(quantized.scale, read_scale(reader, layer.name + ".weight_scale"));
    if (!args.symmetric) {
      SLIM_ASSIGN(quantized.zero, read_offset(reader, layer.name + ".weight_offset", args.min_code(), args.max_code()));
    }
  }
  solved.weight = std::move(quantized);
  return solved;
}

}  // namespace
}  // namespace slim::ascend
SLIM_FORMAT_PLUGIN("ascend", slim::ascend::Ascend,
                   "Ascend checkpoints for MindIE and vLLM-Ascend (quant_model_description.json)")
