#include "common/gptq.hpp"

#include <ATen/ATen.h>

#include <array>

#include "common/bit_stream.hpp"
#include "common/gptq_config.hpp"
#include "common/stored_layer.hpp"
#include "slim/ops.hpp"
#include "slim/quant.hpp"

namespace slim::formats {
namespace {

constexpr std::array<std::string_view, 4> kSuffixes = {".qweight", ".qzeros", ".scales", ".g_idx"};

Status unsupported(const std::string& where, const std::string& why) {
  return {Code::kUnsupported, where + ": format gptq " + why};
}

Status check_scheme(const Layer& layer, const Scheme& scheme, int version) {
  const std::string where = layer.name + ", scheme " + scheme.name;
  if (!scheme.weight || scheme.weight->type != NumberType::kInt || scheme.input) {
    return unsupported(where, "holds integer weights with float activations only");
  }
  const QuantArgs& args = *scheme.weight;
  if (args.granularity != Granularity::kGroup && args.granularity != Granularity::kChannel) {
    return unsupported(where, "has scales per group or channel");
  }
  if (args.bits != 2 && args.bits != 3 && args.bits != 4 && args.bits != 8) {
    return unsupported(where, "packs 2, 3, 4 or 8 bits, not " + std::to_string(args.bits));
  }
  if (!args.symmetric && version == 1) {
    return unsupported(where, "stores zero points less one and cannot hold a zero point of 0; gptq_v2 can");
  }
  for (const int64_t size : {layer.in, layer.out}) {
    if (size * args.bits % 32 == 0) continue;
    return unsupported(where, "packs whole 32-bit words: " + std::to_string(size) + " channels of " +
                                  std::to_string(args.bits) + " bits fill none");
  }
  return check_groups(layer, args);
}

std::vector<TensorSpec> specs_of(const std::string& name, int64_t out, int64_t in, const QuantArgs& args,
                                 Dtype scale) {
  const int64_t groups = scale_shape(args, out, in)[1];
  return {{name + ".qweight", Dtype::kI32, {packed_words(in, args.bits), out}},
          {name + ".qzeros", Dtype::kI32, {groups, packed_words(out, args.bits)}},
          {name + ".scales", scale, {groups, out}},
          {name + ".g_idx", Dtype::kI32, {in}}};
}

at::Tensor plain_index(int64_t in, const QuantArgs& args) {
  if (args.granularity != Granularity::kGroup) return at::zeros({in}, at::kInt);
  return at::arange(in, at::kInt).div(args.group_size, "floor").to(at::kInt);
}

/// Zero points int8 [groups, out] as their signed streams: of version 1 the codes are one less, and may wrap around.
at::Tensor stored_zero(const Quantized& quantized, int version) {
  const at::Tensor zero =
      quantized.zero.defined() ? quantized.zero : at::zeros_like(quantized.scale, at::kChar);
  return zero.t().sub(version == 1 ? 1 : 0);
}

/// Channels of [in] int32, every one in [0, groups).
Result<at::Tensor> read_index(const StoredLayer& layer, const TensorReader& reader) {
  const std::string name = layer.name + ".g_idx";
  SLIM_ASSIGN(const at::Tensor index, reader.read(name));
  const int64_t groups = scale_shape(*layer.scheme.weight, layer.out, layer.in)[1];
  const auto [low, high] = at::aminmax(index);
  if (low.item<int64_t>() < 0 || high.item<int64_t>() >= groups) {
    return corrupt(name, "groups run from 0 to " + std::to_string(groups - 1) + ", found " +
                             std::to_string(low.item<int64_t>()) + " to " +
                             std::to_string(high.item<int64_t>()));
  }
  return index;
}

/// int8 [out, groups]; undefined for a symmetric scheme.
Result<at::Tensor> read_zero(const StoredLayer& layer, const TensorReader& reader, int version) {
  const std::string name = layer.name + ".qzeros";
  const QuantArgs& args = *layer.scheme.weight;
  SLIM_ASSIGN(const at::Tensor packed, reader.read(name));
  const at::Tensor zero = unpack_rows(packed, args.bits, layer.out).to(at::kShort).add(version == 1 ? 1 : 0);
  if (args.symmetric) {
    if (zero.ne(0).any().item<bool>())
      return corrupt(name, "quantization_config says sym, but zero points lie off the middle");
    return at::Tensor();
  }
  if (zero.gt(args.max_code()).any().item<bool>()) {
    return corrupt(name, "a zero point of " + std::to_string(1 << args.bits) + " is impossible");
  }
  return zero.to(at::kChar).t().contiguous();
}

Result<StoredLayer> stored_layer(const std::string& module, const QuantArgs& args,
                                 const TensorReader& reader) {
  const auto& tensors = reader.tensors();
  SLIM_ASSIGN(const TensorSpec codes, find_tensor(module, module + ".qweight", tensors));
  if (codes.shape.size() != 2 || codes.shape[0] * 32 % args.bits != 0) {
    return corrupt(codes.name, shape_string(codes.shape) + " is no matrix of whole streams of " +
                                   std::to_string(args.bits) + " bits");
  }
  return packed_layer(module, codes.shape[1], codes.shape[0] * 32 / args.bits, args, specs_of, tensors,
                      kSuffixes);
}

}  // namespace

Result<std::vector<TensorSpec>> GptqFormat::layout(const Layer& layer, const Scheme& scheme,
                                                   c10::ScalarType) const {
  SLIM_TRY(check_scheme(layer, scheme, version_));
  return specs_of(layer.name, layer.out, layer.in, *scheme.weight, Dtype::kF16);
}

Result<TensorMap> GptqFormat::encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                                     c10::ScalarType) const {
  SLIM_TRY(check_scheme(layer, scheme, version_));
  SLIM_ASSIGN(const Quantized* quantized, check_result(layer, scheme, solved, at::kHalf));
  const bool scattered = quant::has_scattered_groups(*quantized);
  const QuantArgs& args = quantized->args;
  const at::Tensor index =
      scattered ? quantized->group_index.to(at::kCPU, at::kInt) : plain_index(layer.in, args);
  TensorMap tensors;
  tensors[layer.name + ".qweight"] = ops::pack_columns(quantized->codes.to(at::kChar), args.bits).cpu();
  tensors[layer.name + ".qzeros"] = pack_rows(stored_zero(*quantized, version_), args.bits);
  tensors[layer.name + ".scales"] = quantized->scale.t().to(at::kCPU, at::kHalf).contiguous();
  tensors[layer.name + ".g_idx"] = index.contiguous();
  return tensors;
}

Result<std::string> GptqFormat::quantization_config(const OutputModel& model) const {
  return write_gptq_config(model, version_);
}

Result<std::map<std::string, std::string>> GptqFormat::side_files(const OutputModel& model) const {
  return std::map<std::string, std::string>{
      {"quantize_config.json", write_gptq_config(model, version_) + "\n"}};
}

bool GptqFormat::recognises(std::string_view quantization_config, const std::vector<std::string>&) const {
  return GptqConfig::version(quantization_config) == version_;
}

Result<std::vector<StoredLayer>> GptqFormat::stored_layers(const TensorReader& reader,
                                                           std::string_view quantization_config) const {
  SLIM_ASSIGN(const GptqConfig config, GptqConfig::parse(quantization_config));
  std::vector<StoredLayer> layers;
  for (const std::string& module : modules_with(reader.tensors(), kSuffixes)) {
    SLIM_ASSIGN(const QuantArgs args, config.find(module));
    SLIM_ASSIGN(StoredLayer layer, stored_layer(module, args, reader));
    layers.push_back(std::move(layer));
  }
  return layers;
}

Result<Solved> GptqFormat::decode(const StoredLayer& layer, const TensorReader& reader) const {
  const QuantArgs& args = *layer.scheme.weight;
  Quantized quantized{args, {}, {}, {}, {}};
  SLIM_ASSIGN(const at::Tensor packed, reader.read(layer.name + ".qweight"));
  quantized.codes = unpack_rows(packed.t(), args.bits, layer.in);
  SLIM_ASSIGN(const at::Tensor scales, read_scale(reader, layer.name + ".scales"));
  quantized.scale = scales.t().contiguous();
  SLIM_ASSIGN(quantized.zero, read_zero(layer, reader, version_));
  SLIM_ASSIGN(quantized.group_index, read_index(layer, reader));
  if (!quant::has_scattered_groups(quantized)) quantized.group_index.reset();
  Solved solved;
  solved.weight = std::move(quantized);
  return solved;
}

Result<std::vector<std::string>> GptqFormat::contradictions(const OutputModel& found,
                                                            const TensorReader& reader,
                                                            std::string_view quantization_config) const {
  SLIM_ASSIGN(const GptqConfig config, GptqConfig::parse(quantization_config));
  std::vector<std::string> lines;
  for (const std::string& name : config.taken_for_quantized(found))
    lines.push_back(name + ": is stored in float, but quantization_config makes loaders expect it quantized");
  if (config.desc_act()) return lines;
  for (const auto& [name, scheme] : found.schemes) {
    SLIM_ASSIGN(const at::Tensor index, reader.read(name + ".g_idx"));
    if (!at::equal(index, plain_index(index.numel(), *scheme.weight)))
      lines.push_back(name +
                      ".g_idx: groups are scattered, but quantization_config says desc_act = false: engines "
                      "pass over it");
  }
  return lines;
}

}  // namespace slim::formats
