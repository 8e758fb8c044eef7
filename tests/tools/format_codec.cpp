// Quantizes and decodes checkpoints through a format plugin, for comparison with other implementations of the format.
//   slim_format_codec encode PLUGIN SCHEMES GROUP_SIZE ARITHMETIC IN OUT   min-max rounding of every NAME.weight
//   slim_format_codec decode PLUGIN IN OUT                                 every quantized layer as NAME.weight in fp32
// SCHEMES: one for all layers, or several, comma separated, given out in turn. ARITHMETIC: fp32 bf16 fp16.
// Of IN, beside the weights: NAME.input_range F32 [2], the smallest and largest input of static activation scales;
// NAME.group_index I32 [in], the group of each input channel.
#include <ATen/ATen.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "plugin/registry.h"
#include "slim/quant.hpp"
#include "tensor_files.h"

using namespace slim;

namespace {

constexpr auto kModelDtype = at::kBFloat16;
constexpr std::string_view kWeight = ".weight";

/// Rounds the columns in the order of their groups, and puts the codes back in place.
Result<Quantized> round_weight(const at::Tensor& weight, const at::Tensor& index, const QuantArgs& args,
                               at::ScalarType arithmetic, at::ScalarType scale_dtype) {
  const at::Tensor order =
      index.defined() ? at::argsort(index, /*stable=*/true, 0, false) : at::arange(weight.size(1));
  const at::Tensor sorted = weight.index_select(1, order);
  SLIM_ASSIGN(const quant::Params params, quant::choose_params(sorted, args, scale_dtype));
  const at::Tensor codes =
      at::empty(sorted.sizes(), args.type == NumberType::kInt ? at::kChar : at::kFloat8_e4m3fn);
  codes.view(at::kByte).index_copy_(1, order,
                                    quant::encode(sorted, params, args, arithmetic).view(at::kByte));
  return Quantized{args, codes, params.scale, params.zero, index};
}

Result<Solved> round(const Checkpoint& source, const std::string& module, const Scheme& scheme,
                     at::ScalarType arithmetic, at::ScalarType scale_dtype) {
  SLIM_ASSIGN(const at::Tensor stored, source.read(module + std::string(kWeight)));
  at::Tensor index;
  if (source.tensors().contains(module + ".group_index")) {
    SLIM_ASSIGN(index, source.read(module + ".group_index"));
  }
  Solved solved;
  SLIM_ASSIGN(solved.weight,
              round_weight(stored.to(at::kFloat), index, *scheme.weight, arithmetic, scale_dtype));
  if (scheme.input && !scheme.input->dynamic) {
    SLIM_ASSIGN(const at::Tensor range, source.read(module + ".input_range"));
    const auto input =
        quant::params_from_range(range.narrow(0, 0, 1), range.narrow(0, 1, 1), *scheme.input, scale_dtype);
    solved.input_scale = input.scale;
    solved.input_zero = input.zero;
  }
  return solved;
}

Status encode(const Format& format, const std::vector<Scheme>& schemes, at::ScalarType arithmetic,
              const std::string& in, const std::string& out) {
  SLIM_ASSIGN(const auto source, Checkpoint::open(in));
  TensorMap tensors;
  ModelPlan plan;
  plan.blocks.emplace_back();
  OutputModel model;
  model.plan = &plan;
  for (const auto& [name, spec] : source->tensors()) {
    if (!name.ends_with(kWeight)) continue;
    Layer layer;
    layer.name = name.substr(0, name.size() - kWeight.size());
    layer.out = spec.shape[0];
    layer.in = spec.shape[1];
    const Scheme& scheme = schemes[plan.blocks[0].layers.size() % schemes.size()];
    plan.blocks[0].layers.push_back(layer);
    model.schemes[layer.name] = scheme;
    SLIM_ASSIGN(const Solved solved,
                round(*source, layer.name, scheme, arithmetic, format.scale_dtype(scheme, kModelDtype)));
    SLIM_ASSIGN(const TensorMap encoded, format.encode(layer, scheme, solved, kModelDtype));
    tensors.insert(encoded.begin(), encoded.end());
    const auto* quantized = std::get_if<Quantized>(&solved.weight);
    model.scattered_groups = model.scattered_groups || (quantized && quant::has_scattered_groups(*quantized));
  }
  SLIM_ASSIGN(const std::string quantization, format.quantization_config(model));
  SLIM_ASSIGN(auto files, format.side_files(model));
  files["config.json"] = "{\"quantization_config\":" + quantization + "}";
  return tools::write_tensors(out, tensors, files);
}

Status decode(const Format& format, const std::string& in, const std::string& out) {
  SLIM_ASSIGN(const auto source, Checkpoint::open(in));
  const std::string quantization = nlohmann::json::parse(source->config_json())["quantization_config"].dump();
  if (!format.recognises(quantization, source->side_files()))
    return {Code::kCorrupt, in + ": not a checkpoint of this format"};
  SLIM_ASSIGN(const auto layers, format.stored_layers(*source, quantization));
  TensorMap tensors;
  for (const StoredLayer& layer : layers) {
    SLIM_ASSIGN(const Solved solved, format.decode(layer, *source));
    tensors[layer.name + std::string(kWeight)] = quant::decode(std::get<Quantized>(solved.weight));
  }
  return tools::write_tensors(out, tensors);
}

Result<std::vector<Scheme>> schemes_of(const std::string& names, int64_t group_size) {
  std::vector<Scheme> schemes;
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    SLIM_ASSIGN(Scheme scheme, scheme_from_name(names.substr(begin, end - begin), group_size));
    schemes.push_back(std::move(scheme));
    begin = end + 1;
  }
  return schemes;
}

Status run(const std::vector<std::string>& arguments) {
  PluginRegistry registry;
  if (arguments.size() == 4 && arguments[0] == "decode") {
    SLIM_ASSIGN(const auto format, registry.format(arguments[1]));
    return decode(*format, arguments[2], arguments[3]);
  }
  if (arguments.size() == 7 && arguments[0] == "encode") {
    SLIM_ASSIGN(const auto format, registry.format(arguments[1]));
    SLIM_ASSIGN(const std::vector<Scheme> schemes, schemes_of(arguments[2], std::stoll(arguments[3])));
    const std::string& name = arguments[4];
    const auto arithmetic = name == "bf16" ? at::kBFloat16 : name == "fp16" ? at::kHalf : at::kFloat;
    return encode(*format, schemes, arithmetic, arguments[5], arguments[6]);
  }
  return {
      Code::kInvalidArgument,
      "usage: slim_format_codec encode PLUGIN SCHEMES GROUP_SIZE ARITHMETIC IN OUT | decode PLUGIN IN OUT"};
}

}  // namespace

int main(int count, char** values) { return tools::exit_code(run({values + 1, values + count})); }
