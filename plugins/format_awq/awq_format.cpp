#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "common/bit_stream.hpp"
#include "common/gptq_config.hpp"
#include "common/stored_layer.hpp"
#include "float_modules.h"
#include "slim/ops.hpp"
#include "slim/plugin.hpp"
#include "slim/quant.hpp"

namespace slim::awq_format {
namespace {

using namespace formats;
using Json = nlohmann::ordered_json;

constexpr int kBits = 4;
constexpr int64_t kPerWord = 32 / kBits;
/// Position k of a word holds the output channel kOrder[k] of its eight.
constexpr std::array<int64_t, kPerWord> kOrder = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr std::array<std::string_view, 3> kSuffixes = {".qweight", ".qzeros", ".scales"};

/// Checkpoints of AutoAWQ, version "gemm": per layer `qweight` int32 [in, out / 8] and `qzeros` int32 [groups, out /
/// 8], eight output channels interleaved in a word, unsigned; `scales` fp16 [groups, out]. w[o, i] = (q[i, o] - z[i /
/// g, o]) * s[i / g, o]. Symmetric weights are stored with zero points of 8.
class AwqFormat final : public Format {
 public:
  c10::ScalarType scale_dtype(const Scheme&, c10::ScalarType) const override { return c10::ScalarType::Half; }
  Result<std::vector<TensorSpec>> layout(const Layer&, const Scheme&,
                                         c10::ScalarType model_dtype) const override;
  Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&,
                           c10::ScalarType model_dtype) const override;
  Result<std::string> quantization_config(const OutputModel&) const override;
  bool recognises(std::string_view quantization_config, const std::vector<std::string>& files) const override;
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&,
                                                 std::string_view quantization_config) const override;
  Result<Solved> decode(const StoredLayer&, const TensorReader&) const override;
  Result<std::vector<std::string>> contradictions(const OutputModel& found, const TensorReader&,
                                                  std::string_view quantization_config) const override;
};

Status unsupported(const std::string& where, const std::string& why) {
  return {Code::kUnsupported, where + ": format awq " + why};
}

Status check_scheme(const Layer& layer, const Scheme& scheme) {
  const std::string where = layer.name + ", scheme " + scheme.name;
  if (!scheme.weight || scheme.weight->type != NumberType::kInt || scheme.weight->bits != kBits ||
      scheme.input) {
    return unsupported(where, "holds 4-bit integer weights with float activations only");
  }
  const QuantArgs& args = *scheme.weight;
  if (args.granularity != Granularity::kGroup && args.granularity != Granularity::kChannel) {
    return unsupported(where, "has scales per group or channel");
  }
  if (layer.role == Role::kHead) return unsupported(where, "leaves the output head in float; ignore it");
  if (layer.out % kPerWord != 0) {
    return unsupported(
        where, "packs eight output channels in a word, which do not divide " + std::to_string(layer.out));
  }
  return check_groups(layer, args);
}

std::vector<TensorSpec> specs_of(const std::string& name, int64_t out, int64_t in, const QuantArgs& args,
                                 Dtype scale) {
  const int64_t groups = scale_shape(args, out, in)[1];
  return {{name + ".qweight", Dtype::kI32, {in, out / kPerWord}},
          {name + ".qzeros", Dtype::kI32, {groups, out / kPerWord}},
          {name + ".scales", scale, {groups, out}}};
}

/// Words [n, out / 8] -> signed codes [out, n].
at::Tensor unpack(const at::Tensor& words, int64_t out) {
  std::array<int64_t, kPerWord> position{};
  for (int64_t k = 0; k < kPerWord; ++k) position[kOrder[k]] = k;
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(position.data(), position.size()), at::kLong);
  const at::Tensor codes =
      unpack_rows(words, kBits, out).view({words.size(0), -1, kPerWord}).index_select(2, index);
  return codes.view({words.size(0), out}).t().contiguous();
}

// ---- writing --------------------------------------------------------------------------------------------------------

Result<std::vector<TensorSpec>> AwqFormat::layout(const Layer& layer, const Scheme& scheme,
                                                  c10::ScalarType) const {
  SLIM_TRY(check_scheme(layer, scheme));
  return specs_of(layer.name, layer.out, layer.in, *scheme.weight, Dtype::kF16);
}

Result<TensorMap> AwqFormat::encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                                    c10::ScalarType) const {
  SLIM_TRY(check_scheme(layer, scheme));
  SLIM_ASSIGN(const Quantized* quantized, check_result(layer, scheme, solved, at::kHalf));
  if (quant::has_scattered_groups(*quantized))
    return unsupported(layer.name, "has no index of groups; use static groups, or format gptq");
  const at::Tensor zero =
      quantized->zero.defined() ? quantized->zero : at::zeros_like(quantized->scale, at::kChar);
  TensorMap tensors;
  tensors[layer.name + ".qweight"] = ops::pack_awq(quantized->codes.to(at::kChar)).cpu();
  tensors[layer.name + ".qzeros"] = ops::pack_awq(zero.to(at::kChar)).cpu();
  tensors[layer.name + ".scales"] = quantized->scale.t().to(at::kCPU, at::kHalf).contiguous();
  return tensors;
}

Result<std::string> AwqFormat::quantization_config(const OutputModel& model) const {
  std::optional<QuantArgs> common;
  std::string first;
  for (const auto& [name, scheme] : model.schemes) {
    QuantArgs args = *scheme.weight;
    args.symmetric = false;  // stored with zero points, whether they are needed or not
    if (!common) std::tie(common, first) = std::pair(args, name);
    if (*common != args)
      return unsupported(name, "has one group size for the whole model, and " + first + " has another");
  }
  if (!common) return std::string();
  const std::vector<std::string> ignore = float_modules(model);
  Json json;
  json["quant_method"] = "awq";
  json["bits"] = kBits;
  json["group_size"] = common->granularity == Granularity::kGroup ? common->group_size : -1;
  json["zero_point"] = true;
  json["version"] = "gemm";
  json["modules_to_not_convert"] = ignore.empty() ? Json(nullptr) : Json(ignore);
  for (const std::string& pattern : formats::patterns_in_float(model))
    json["dynamic"]["-:" + pattern] = Json::object();  // GPTQModel
  return json.dump();
}

// ---- reading --------------------------------------------------------------------------------------------------------

bool AwqFormat::recognises(std::string_view quantization_config, const std::vector<std::string>&) const {
  const Json json = Json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("quant_method") && json["quant_method"] == "awq";
}

Result<QuantArgs> read_config(std::string_view text) try {
  const Json json = Json::parse(text);
  const auto number = [&](const char* key, const char* old_key) {
    return json.value(key, json.value(old_key, int64_t{0}));
  };
  const auto refuse = [](const std::string& key, const std::string& what) {
    return Status(Code::kUnsupported, "quantization_config." + key + ": slim reads AutoAWQ's " + what);
  };
  const std::string version = json.value("version", "gemm");
  if (version != "gemm" && version != "GEMM") return refuse("version", "gemm, found " + version);
  if (number("bits", "w_bit") != kBits)
    return refuse("bits", "4 bits, found " + std::to_string(number("bits", "w_bit")));
  if (!json.value("zero_point", true)) return refuse("zero_point", "weights with zero points only");
  const int64_t size = number("group_size", "q_group_size");
  if (size <= 0 && size != -1)
    return corrupt("quantization_config.group_size",
                   "expected a positive number or -1, found " + std::to_string(size));
  QuantArgs args;
  args.bits = kBits;
  args.symmetric = false;
  args.granularity = size == -1 ? Granularity::kChannel : Granularity::kGroup;
  if (size > 0) args.group_size = size;
  return args;
} catch (const nlohmann::json::exception& error) {
  return Status(Code::kCorrupt, std::string("quantization_config: ") + error.what());
}

Result<StoredLayer> stored_layer(const std::string& module, const QuantArgs& args,
                                 const TensorReader& reader) {
  const auto& tensors = reader.tensors();
  SLIM_ASSIGN(const TensorSpec codes, find_tensor(module, module + ".qweight", tensors));
  if (codes.shape.size() != 2)
    return corrupt(codes.name, "expected two dimensions, found " + shape_string(codes.shape));
  return packed_layer(module, codes.shape[1] * kPerWord, codes.shape[0], args, specs_of, tensors, kSuffixes);
}

Result<std::vector<StoredLayer>> AwqFormat::stored_layers(const TensorReader& reader,
                                                          std::string_view quantization_config) const {
  SLIM_ASSIGN(const QuantArgs args, read_config(quantization_config));
  std::vector<StoredLayer> layers;
  for (const std::string& module : modules_with(reader.tensors(), kSuffixes)) {
    SLIM_ASSIGN(StoredLayer layer, stored_layer(module, args, reader));
    layers.push_back(std::move(layer));
  }
  return layers;
}

Result<Solved> AwqFormat::decode(const StoredLayer& layer, const TensorReader& reader) const {
  Quantized quantized{*layer.scheme.weight, {}, {}, {}, {}};
  SLIM_ASSIGN(const at::Tensor codes, reader.read(layer.name + ".qweight"));
  SLIM_ASSIGN(const at::Tensor zero, reader.read(layer.name + ".qzeros"));
  SLIM_ASSIGN(const at::Tensor scales, read_scale(reader, layer.name + ".scales"));
  quantized.codes = unpack(codes, layer.out);
  quantized.zero = unpack(zero, layer.out);
  quantized.scale = scales.t().contiguous();
  Solved solved;
  solved.weight = std::move(quantized);
  return solved;
}

/// Loaders look for the entries of "modules_to_not_convert" anywhere in a name; heads and routers stay in float without one.
Result<std::vector<std::string>> AwqFormat::contradictions(const OutputModel& found, const TensorReader&,
                                                           std::string_view quantization_config) const try {
  const Json json = Json::parse(quantization_config);
  std::vector<std::string> entries, lines;
  if (json.contains("modules_to_not_convert") && json["modules_to_not_convert"].is_array())
    json["modules_to_not_convert"].get_to(entries);
  const auto named = [&](const std::string& name) {
    return std::any_of(entries.begin(), entries.end(),
                       [&](const std::string& e) { return name.find(e) != std::string::npos; });
  };
  for (const BlockPlan& block : found.plan->blocks) {
    for (const Layer& layer : block.layers) {
      const bool special = layer.role == Role::kHead || layer.role == Role::kRouter;
      if (!special && !found.schemes.contains(layer.name) && !named(layer.name))
        lines.push_back(
            layer.name +
            ": is stored in float, but modules_to_not_convert does not name it: loaders expect it quantized");
    }
  }
  for (const auto& [name, scheme] : found.schemes) {
    if (named(name))
      lines.push_back(
          name + ": is stored quantized, but modules_to_not_convert names it: loaders expect it in float");
  }
  return lines;
} catch (const nlohmann::json::exception& error) {
  return Status(Code::kCorrupt, std::string("quantization_config: ") + error.what());
}

}  // namespace
}  // namespace slim::awq_format
SLIM_FORMAT_PLUGIN("awq", slim::awq_format::AwqFormat,
                   "AutoAWQ checkpoints (gemm) for vLLM, GPTQModel and transformers")
