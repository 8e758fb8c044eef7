#include <ATen/ATen.h>

#include "common/stored_layer.hpp"
#include "storage.h"
#include "values.h"

namespace slim::ascend {
namespace {

using formats::corrupt;

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
    return corrupt(module, std::to_string(storage.groups) + " scales a row do not fit its weight " +
                               shape_string(weight->shape));
  }
  if (storage.scale != Dtype::kBF16 && storage.scale != Dtype::kF16 && storage.scale != Dtype::kF32) {
    return corrupt(module,
                   "scales are " + std::string(dtype_name(storage.scale)) + ", expected BF16, F16 or F32");
  }
  return storage;
}

Scheme scheme_of(const Storage& storage, bool asymmetric) {
  QuantArgs weight;
  weight.bits = storage.type == Type::kW4A16 ? 4 : 8;
  const bool grouped = storage.groups > 1 || storage.type == Type::kW4A16;
  weight.granularity = storage.one_scale ? Granularity::kTensor
                       : grouped         ? Granularity::kGroup
                                         : Granularity::kChannel;
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

Status check_tensors(const std::string& module, const std::vector<TensorSpec>& expected,
                     const TensorReader& reader, bool v1) {
  for (const TensorSpec& spec : expected) {
    const auto found = reader.tensors().find(spec.name);
    if (found == reader.tensors().end()) {
      if (v1 && spec.name.find(".weight_") != std::string::npos) continue;
      return corrupt(module, "tensor " + spec.name + " is missing");
    }
    if (found->second.dtype != spec.dtype || found->second.shape != spec.shape) {
      return corrupt(spec.name, "expected " + std::string(dtype_name(spec.dtype)) + " " +
                                    shape_string(spec.shape) + ", found " +
                                    std::string(dtype_name(found->second.dtype)) + " " +
                                    shape_string(found->second.shape));
    }
  }
  return {};
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

Result<at::Tensor> read_offset(const TensorReader& reader, const std::string& name, int64_t least,
                               int64_t largest) {
  SLIM_ASSIGN(const at::Tensor tensor, reader.read(name));
  const at::Tensor offset = tensor.to(at::kFloat);
  const at::Tensor valid =
      (offset >= least).logical_and(offset <= largest).logical_and(offset == offset.round());
  if (!valid.all().item<bool>()) {
    return corrupt(
        name, "offsets must be integers from " + std::to_string(least) + " to " + std::to_string(largest));
  }
  return offset.to(at::kChar);
}

/// The weights' scales that an engine computes with: deq_scale / input_scale. Where weight_scale agrees it is the same
/// without the rounding of a division.
Result<at::Tensor> effective_scale(const StoredLayer& layer, const TensorReader& reader,
                                   const at::Tensor& deq_scale, const at::Tensor& input_scale) {
  const std::string name = layer.name + ".weight_scale";
  if (reader.tensors().contains(name)) {
    SLIM_ASSIGN(const at::Tensor scale, read_scale(reader, name));
    if (at::equal(scale.view({-1}) * input_scale, deq_scale)) return scale;
  }
  return (deq_scale / input_scale).reshape({-1, 1});
}

/// The scale of the weights, and the static input parameters into `solved`; quant_bias is checked against what it must
/// be.
Result<at::Tensor> decode_static(const StoredLayer& layer, const TensorReader& reader,
                                 const at::Tensor& codes, Solved& solved) {
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
  return effective_scale(layer, reader, deq_scale, solved.input_scale);
}

}  // namespace

Result<StoredLayer> stored_layer(const std::string& module, const std::string& type_text,
                                 const TensorReader& reader) {
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

Result<Solved> decode(const StoredLayer& layer, const TensorReader& reader) {
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
      SLIM_ASSIGN(quantized.zero,
                  read_offset(reader, layer.name + ".weight_offset", args.min_code(), args.max_code()));
    }
  }
  solved.weight = std::move(quantized);
  return solved;
}

}  // namespace slim::ascend
