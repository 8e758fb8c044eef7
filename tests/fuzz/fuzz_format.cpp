#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <memory>

#include "input.h"
#include "slim/abi.h"
#include "slim/format.hpp"
#include "slim/quant.hpp"

/// One format's reading: a layer that it wrote itself, then damaged; or such a layer under an arbitrary configuration.
using namespace slim;

extern "C" const slim_plugin slim_plugin_v1;

namespace {

constexpr int64_t kMostElements = 1 << 14;

struct InMemory final : TensorReader {
  const std::map<std::string, TensorSpec>& tensors() const override { return specs; }
  Result<at::Tensor> read(std::string_view name) const override {
    const auto found = values.find(name);
    if (found == values.end()) return Status(Code::kNotFound, "no tensor '" + std::string(name) + "'");
    return found->second.clone();
  }
  void put(const std::string& name, const at::Tensor& value) {
    specs[name] = {name, *from_scalar_type(value.scalar_type()), value.sizes().vec()};
    values[name] = value.contiguous();
  }
  void erase(const std::string& name) {
    specs.erase(name);
    values.erase(name);
  }
  std::map<std::string, TensorSpec> specs;
  TensorMap values;
};

QuantArgs quant_args(fuzz::Choices& choices) {
  QuantArgs args;
  args.type = choices.below(4) == 0 ? NumberType::kFloat : NumberType::kInt;
  args.bits = args.type == NumberType::kFloat ? 8 : std::array{2, 3, 4, 8}[choices.below(4)];
  args.granularity = std::array{Granularity::kGroup, Granularity::kChannel, Granularity::kTensor,
                                Granularity::kBlock}[choices.below(4)];
  args.group_size = int64_t{8} << choices.below(3);
  args.block_rows = args.block_columns = 16;
  args.symmetric = args.type == NumberType::kFloat || choices.below(2) == 0;
  return args;
}

Scheme scheme(fuzz::Choices& choices) {
  Scheme scheme{"fuzz", quant_args(choices), {}, {}};
  const size_t input = choices.below(3);
  if (input == 0) return scheme;
  scheme.input = *scheme.weight;
  scheme.input->bits = 8;
  scheme.input->dynamic = input == 1;
  scheme.input->granularity = input == 1 ? Granularity::kToken : Granularity::kTensor;
  return scheme;
}

Solved solve(const Layer& layer, const Scheme& scheme, at::ScalarType scale_dtype) {
  const at::Tensor weight = at::arange(layer.out * layer.in, at::kFloat).view({layer.out, layer.in}).sin();
  const auto params = quant::choose_params(weight, *scheme.weight, scale_dtype);
  FUZZ_REQUIRE(params.ok());
  Solved solved;
  solved.weight = Quantized{
      *scheme.weight, quant::encode(weight, *params, *scheme.weight), params->scale, params->zero, {}};
  if (scheme.input && !scheme.input->dynamic) {
    solved.input_scale = at::full({1}, 0.5, scale_dtype);
    if (!scheme.input->symmetric) solved.input_zero = at::full({1}, -3, at::kChar);
  }
  return solved;
}

/// Another name, dtype, shape or value of one tensor, or none of it.
void damage(fuzz::Choices& choices, InMemory& reader) {
  if (reader.specs.empty()) return;
  const auto chosen =
      std::next(reader.values.begin(), static_cast<ptrdiff_t>(choices.below(reader.values.size())));
  const std::string name = chosen->first;
  const at::Tensor value = chosen->second;
  switch (choices.below(6)) {
    case 0:
      return reader.erase(name);
    case 1: {
      constexpr std::array kTypes = {at::kChar,     at::kInt,   at::kLong,          at::kHalf,
                                     at::kBFloat16, at::kFloat, at::kFloat8_e4m3fn, at::kBool};
      return reader.put(name, value.to(at::kFloat).to(kTypes[choices.below(kTypes.size())]));
    }
    case 2: {
      std::vector<int64_t> shape(choices.below(4));
      int64_t elements = 1;
      for (int64_t& size : shape) elements *= size = static_cast<int64_t>(choices.below(65));
      if (elements > kMostElements) return;
      return reader.put(name, at::zeros(shape, value.scalar_type()));
    }
    case 3:
      reader.put(name.substr(0, name.size() - choices.below(name.size() + 1)) +
                     static_cast<char>('a' + choices.below(26)),
                 value);
      return;
    case 4:
      return reader.put(
          name, value.numel() > 0
                    ? value.flatten().slice(
                          0, 0, static_cast<int64_t>(choices.below(static_cast<size_t>(value.numel()) + 1)))
                    : value);
    default: {
      at::Tensor changed = value.clone();
      if (changed.nbytes() == 0) return;
      const size_t at = choices.number(2) % changed.nbytes();
      static_cast<uint8_t*>(changed.data_ptr())[at] = choices.byte();
      return reader.put(name, changed);
    }
  }
}

/// Other digits and letters; most other changes only break the JSON.
void damage(fuzz::Choices& choices, std::string& text) {
  if (text.empty()) return;
  const size_t at = choices.number(2) % text.size();
  constexpr std::array<std::string_view, 10> kParts = {"0",  "-1", "null",  "true", "9999999999999999999",
                                                       "[]", "{}", "1e999", "\"\"", "128"};
  const size_t kind = choices.below(kParts.size() + 1);
  if (kind == kParts.size()) {
    text[at] = static_cast<char>(choices.byte());
    return;
  }
  // The value that follows the next colon.
  const size_t colon = text.find(':', at);
  if (colon == std::string::npos) return;
  const size_t end = text.find_first_of(",}]", colon);
  if (end != std::string::npos) text.replace(colon + 1, end - colon - 1, kParts[kind]);
}

std::string config_of(const Format& format, const Layer& layer, const Scheme& scheme,
                      const InMemory& reader) {
  ModelPlan plan;
  plan.blocks.emplace_back();
  plan.blocks[0].layers.push_back(layer);
  OutputModel model;
  model.plan = &plan;
  model.schemes[layer.name] = scheme;
  model.tensors = reader.specs;
  const auto config = format.quantization_config(model);
  FUZZ_REQUIRE(config.ok());
  if (!config->empty()) return *config;
  const auto files = format.side_files(model);  // a description beside the weights instead
  FUZZ_REQUIRE(files.ok());
  return files->empty() ? "" : files->begin()->second;
}

void read_all(const Format& format, const InMemory& reader, const std::string& config, bool whole) {
  (void)format.recognises(config, {"model.safetensors"});
  const auto layers = format.stored_layers(reader, config);
  FUZZ_REQUIRE(!whole || (layers.ok() && layers->size() == 1));
  if (!layers.ok()) return;
  for (const StoredLayer& layer : *layers) {
    const auto solved = format.decode(layer, reader);
    FUZZ_REQUIRE(!whole || solved.ok());
    const auto* quantized = solved.ok() ? std::get_if<Quantized>(&solved->weight) : nullptr;
    if (quantized == nullptr) continue;
    FUZZ_REQUIRE(quantized->codes.size(0) == layer.out && quantized->codes.size(1) == layer.in);
    (void)quant::decode(*quantized).sum().item<float>();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  slim_error error{};
  static const std::unique_ptr<Format> format(
      static_cast<Format*>(slim_plugin_v1.components[0].create(nullptr, &error)));
  FUZZ_REQUIRE(format != nullptr);
  fuzz::Choices choices({data, size});
  Layer layer;
  layer.name = "model.layers.0.mlp.up_proj";
  layer.out = 8 * static_cast<int64_t>(1 + choices.below(4));
  layer.in = 8 * static_cast<int64_t>(1 + choices.below(8));
  const Scheme chosen = scheme(choices);
  if (!format->layout(layer, chosen, at::kBFloat16).ok()) return 0;
  const auto tensors = format->encode(
      layer, chosen, solve(layer, chosen, format->scale_dtype(chosen, at::kBFloat16)), at::kBFloat16);
  if (!tensors.ok()) return 0;
  InMemory reader;
  for (const auto& [name, value] : *tensors) reader.put(name, value);
  std::string config = config_of(*format, layer, chosen, reader);
  const bool whole = choices.empty();
  const bool any_config = choices.below(4) == 3;
  while (!any_config && !choices.empty())
    choices.below(2) ? damage(choices, reader) : damage(choices, config);
  if (any_config) config = fuzz::text_of(choices.rest().data(), choices.rest().size());
  read_all(*format, reader, config, whole);
  return 0;
}
