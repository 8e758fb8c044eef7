#include <ATen/ATen.h>

#include "common/stored_layer.hpp"
#include "slim/quant.hpp"
#include "storage.h"
#include "values.h"

namespace slim::ascend {

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
  SLIM_TRY(formats::check_groups(layer, *scheme.weight));
  if (scheme.weight->granularity == Granularity::kGroup)
    storage.groups = layer.in / scheme.weight->group_size;
  if (storage.type == Type::kW4A16 && layer.out % 2 != 0) {
    return Status(Code::kUnsupported, layer.name + ": W4A16 stores rows in pairs, found " +
                                          std::to_string(layer.out) +
                                          " rows; ignore this layer, or use compressed-tensors");
  }
  const auto scale = from_scalar_type(scale_dtype(storage.type, model_dtype));
  if (!scale) return Status(Code::kUnsupported, "format ascend cannot store scales in the model's dtype");
  storage.scale = *scale;
  storage.deq_scale = model_dtype == at::kHalf ? Dtype::kI64 : Dtype::kF32;
  return storage;
}

namespace {

Status check_result(const Layer& layer, const Scheme& scheme, const Storage& storage, const Solved& solved) {
  const auto wrong = [&](const std::string& what) {
    return Status(Code::kInternal, layer.name + ": the algorithm's result has " + what);
  };
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  if (!quantized) return wrong("a float weight for scheme " + scheme.name);
  if (quantized->args != *scheme.weight) return wrong("another quantization than scheme " + scheme.name);
  if (quantized->codes.sizes() != at::IntArrayRef({layer.out, layer.in}))
    return wrong("codes of a wrong shape");
  const int64_t scales = storage.one_scale ? 1 : layer.out * storage.groups;
  if (!quantized->scale.defined() || quantized->scale.numel() != scales)
    return wrong("scales of a wrong shape");
  if (quantized->zero.defined() && quantized->zero.numel() != scales)
    return wrong("zero points of a wrong shape");
  if (quant::has_scattered_groups(*quantized)) {
    return {Code::kUnsupported,
            layer.name + ": format ascend has no index of groups; use static groups, or format gptq"};
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
  const at::Tensor offset =
      solved.input_zero.defined() ? solved.input_zero.cpu().view({1}) : at::zeros({1}, at::kChar);
  // In fp32, where the product of two bf16 scales is exact (msmodelslim rounds it to bf16: up to 1/256 of each weight).
  const at::Tensor scale = quantized.scale.cpu().to(dtype).to(at::kFloat).reshape({-1});
  const at::Tensor deq_scale = input_scale.to(at::kFloat) * scale;
  if (!at::isfinite(deq_scale).all().item<bool>() || !(deq_scale > 0).all().item<bool>()) {
    return {Code::kNumeric, layer.name + ": deq_scale = input_scale * weight_scale under- or overflows"};
  }
  Result<at::Tensor> bias = quant_bias(quantized.codes.cpu(), deq_scale, offset,
                                       layer.bias.empty() ? at::Tensor() : solved.bias.cpu());
  if (!bias.ok()) return bias.status().in(layer.name);
  tensors[layer.name + ".input_scale"] = input_scale;
  tensors[layer.name + ".input_offset"] = offset.to(dtype);
  tensors[layer.name + ".deq_scale"] = storage.deq_scale == Dtype::kI64 ? float_bits(deq_scale) : deq_scale;
  tensors[layer.name + ".quant_bias"] = *bias;
  return {};
}

}  // namespace

Result<TensorMap> encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                         c10::ScalarType model_dtype) {
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
  const at::Tensor offset = quantized.zero.defined()
                                ? quantized.zero.cpu().to(dtype).reshape_as(scale).contiguous()
                                : at::zeros_like(scale);
  tensors[layer.name + ".weight_scale"] = scale;
  tensors[layer.name + ".weight_offset"] = offset;
  return tensors;
}

}  // namespace slim::ascend
