// Quantizes and decodes checkpoints through the compressed-tensors plugin, for comparison with compressed-tensors itself.
//   slim_ct_codec encode PLUGIN SCHEME GROUP_SIZE ARITHMETIC IN OUT   min-max rounding of every NAME.weight; ARITHMETIC: fp32 bf16 fp16
//   slim_ct_codec decode PLUGIN IN OUT                                every quantized layer as NAME.weight in fp32
// Static activation scales come from a tensor NAME.input_range F32 [2] (smallest, largest) of IN.
#include <ATen/ATen.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/writer.h"
#include "plugin/registry.h"
#include "slim/quant.hpp"

using namespace slim;

namespace {

constexpr auto kScaleDtype = at::kBFloat16;

Status write(const std::string& folder, const TensorMap& tensors, const std::string& config) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, value] : tensors) specs.push_back({name, *from_scalar_type(value.scalar_type()), value.sizes().vec()});
  WriterOptions options;
  options.folder = folder;
  SLIM_ASSIGN(const auto writer, CheckpointWriter::create(options, specs));
  for (const auto& [name, value] : tensors) SLIM_TRY(writer->put(name, value.contiguous()));
  SLIM_TRY(writer->write_file("config.json", config));
  return writer->finish();
}

Result<Solved> round(const Checkpoint& source, const std::string& module, const Scheme& scheme, at::ScalarType arithmetic) {
  SLIM_ASSIGN(const at::Tensor stored, source.read(module + ".weight"));
  const at::Tensor weight = stored.to(at::kFloat);
  SLIM_ASSIGN(const quant::Params params, quant::choose_params(weight, *scheme.weight, kScaleDtype));
  Solved solved;
  solved.weight = Quantized{*scheme.weight, quant::encode(weight, params, *scheme.weight, arithmetic), params.scale, params.zero, {}};
  if (scheme.input && !scheme.input->dynamic) {
    SLIM_ASSIGN(const at::Tensor range, source.read(module + ".input_range"));
    const auto input = quant::params_from_range(range.narrow(0, 0, 1), range.narrow(0, 1, 1), *scheme.input, kScaleDtype);
    solved.input_scale = input.scale;
    solved.input_zero = input.zero;
  }
  return solved;
}

Status encode(const Format& format, const Scheme& scheme, at::ScalarType arithmetic, const std::string& in, const std::string& out) {
  SLIM_ASSIGN(const auto source, Checkpoint::open(in));
  TensorMap tensors;
  OutputModel model;
  for (const auto& [name, spec] : source->tensors()) {
    if (!name.ends_with(".weight")) continue;
    Layer layer;
    layer.name = name.substr(0, name.size() - std::string_view(".weight").size());
    layer.out = spec.shape[0];
    layer.in = spec.shape[1];
    model.schemes[layer.name] = scheme;
    SLIM_ASSIGN(const Solved solved, round(*source, layer.name, scheme, arithmetic));
    SLIM_ASSIGN(const TensorMap encoded, format.encode(layer, scheme, solved, kScaleDtype));
    tensors.insert(encoded.begin(), encoded.end());
  }
  SLIM_ASSIGN(const std::string quantization, format.quantization_config(model));
  return write(out, tensors, "{\"quantization_config\":" + quantization + "}");
}

Status decode(const Format& format, const std::string& in, const std::string& out) {
  SLIM_ASSIGN(const auto source, Checkpoint::open(in));
  const std::string quantization = nlohmann::json::parse(source->config_json())["quantization_config"].dump();
  if (!format.recognises(quantization, {})) return {Code::kCorrupt, in + ": not a compressed-tensors checkpoint"};
  SLIM_ASSIGN(const auto layers, format.stored_layers(*source, quantization));
  TensorMap tensors;
  for (const StoredLayer& layer : layers) {
    SLIM_ASSIGN(const Solved solved, format.decode(layer, *source));
    tensors[layer.name + ".weight"] = quant::decode(std::get<Quantized>(solved.weight));
  }
  return write(out, tensors, "{}");
}

Status run(const std::vector<std::string>& arguments) {
  PluginRegistry registry;
  if (arguments.size() == 4 && arguments[0] == "decode") {
    SLIM_ASSIGN(const auto format, registry.format(arguments[1]));
    return decode(*format, arguments[2], arguments[3]);
  }
  if (arguments.size() == 7 && arguments[0] == "encode") {
    SLIM_ASSIGN(const auto format, registry.format(arguments[1]));
    SLIM_ASSIGN(const Scheme scheme, scheme_from_name(arguments[2], std::stoll(arguments[3])));
    const std::string& name = arguments[4];
    const auto arithmetic = name == "bf16" ? at::kBFloat16 : name == "fp16" ? at::kHalf : at::kFloat;
    return encode(*format, scheme, arithmetic, arguments[5], arguments[6]);
  }
  return {Code::kInvalidArgument, "usage: slim_ct_codec encode PLUGIN SCHEME GROUP_SIZE ARITHMETIC IN OUT | decode PLUGIN IN OUT"};
}

}  // namespace

int main(int count, char** values) {
  const Status status = run({values + 1, values + count});
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
