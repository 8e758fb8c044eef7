// SPDX-License-Identifier: Apache-2.0
// A plain format: codes as int8, one byte each, beside their scales and zero points. No engine reads it; it shows every part that
// a format has, and slim itself reads it back (`slim verify`, `slim eval`).
#include <ATen/ATen.h>

#include <regex>

#include "slim/plugin.hpp"
#include "slim/quant.hpp"

namespace {
using namespace slim;

constexpr std::string_view kCodes = ".weight_codes", kScale = ".weight_scale", kZero = ".weight_zero";

/// Groups of a row: 1 when a whole row shares its scale.
int64_t groups_of(const QuantArgs& args, int64_t in) { return args.granularity == Granularity::kGroup ? in / args.group_size : 1; }

class MyFormat final : public Format {
 public:
  c10::ScalarType scale_dtype(const Scheme&, c10::ScalarType model_dtype) const override { return model_dtype; }

  Result<std::vector<TensorSpec>> layout(const Layer& layer, const Scheme& scheme, c10::ScalarType model_dtype) const override {
    SLIM_TRY(check(layer, scheme));
    const std::vector<int64_t> scales{layer.out, groups_of(*scheme.weight, layer.in)};
    std::vector<TensorSpec> specs{{layer.name + std::string(kCodes), Dtype::kI8, {layer.out, layer.in}},
                                  {layer.name + std::string(kScale), *from_scalar_type(model_dtype), scales}};
    if (!scheme.weight->symmetric) specs.push_back({layer.name + std::string(kZero), Dtype::kI8, scales});
    return specs;
  }

  Result<TensorMap> encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                           c10::ScalarType model_dtype) const override {
    const auto* quantized = std::get_if<Quantized>(&solved.weight);
    if (!quantized) return Status(Code::kUnsupported, layer.name + ": my_format stores quantized weights, the algorithm gave a dense one");
    if (quantized->group_index.defined()) return Status(Code::kUnsupported, layer.name + ": my_format stores groups in their order alone");
    TensorMap tensors{{layer.name + std::string(kCodes), quantized->codes.contiguous()},
                      {layer.name + std::string(kScale), quantized->scale.to(model_dtype).contiguous()}};
    if (!scheme.weight->symmetric) tensors[layer.name + std::string(kZero)] = quantized->zero.contiguous();
    return tensors;
  }

  Result<std::string> quantization_config(const OutputModel& model) const override {
    QuantArgs args;
    for (const auto& [layer, scheme] : model.schemes) args = *scheme.weight;
    return R"({"quant_method": "my_format", "bits": )" + std::to_string(args.bits) + R"(, "symmetric": )" +
           (args.symmetric ? "true}" : "false}");
  }

  bool recognises(std::string_view quantization_config, const std::vector<std::string>&) const override {
    static const std::regex method(R"("quant_method"\s*:\s*"my_format")");
    return std::regex_search(quantization_config.begin(), quantization_config.end(), method);
  }

  Result<std::vector<StoredLayer>> stored_layers(const TensorReader& reader, std::string_view quantization_config) const override {
    SLIM_ASSIGN(const QuantArgs args, args_of(quantization_config));
    std::vector<StoredLayer> layers;
    for (const auto& [name, spec] : reader.tensors()) {
      if (!name.ends_with(kCodes)) continue;
      SLIM_ASSIGN(StoredLayer layer, stored_layer(reader, name.substr(0, name.size() - kCodes.size()), spec, args));
      layers.push_back(std::move(layer));
    }
    return layers;
  }

  Result<Solved> decode(const StoredLayer& layer, const TensorReader& reader) const override {
    Quantized quantized;
    quantized.args = *layer.scheme.weight;
    SLIM_ASSIGN(quantized.codes, reader.read(layer.name + std::string(kCodes)));
    SLIM_ASSIGN(quantized.scale, reader.read(layer.name + std::string(kScale)));
    SLIM_TRY(check_codes(quantized.codes, quantized.args, layer.name + std::string(kCodes)));
    if (!at::isfinite(quantized.scale).all().item<bool>()) {
      return Status(Code::kCorrupt, layer.name + std::string(kScale) + ": holds NaN or Inf");
    }
    if (!quantized.args.symmetric) {
      SLIM_ASSIGN(quantized.zero, reader.read(layer.name + std::string(kZero)));
      SLIM_TRY(check_codes(quantized.zero, quantized.args, layer.name + std::string(kZero)));
    }
    return Solved{std::move(quantized), {}, {}, {}, {}};
  }

 private:
  static Status check(const Layer& layer, const Scheme& scheme) {
    const auto refuse = [&](const std::string& what) { return Status(Code::kUnsupported, layer.name + ": my_format does not store " + what); };
    if (!scheme.weight || scheme.sparsity) return refuse("scheme " + scheme.name);
    if (scheme.input) return refuse("quantized activations");
    const QuantArgs& args = *scheme.weight;
    const bool rows_or_groups = args.granularity == Granularity::kGroup || args.granularity == Granularity::kChannel;
    if (args.type != NumberType::kInt || !rows_or_groups) return refuse("anything but integers by groups or rows");
    if (args.granularity == Granularity::kGroup && layer.in % args.group_size != 0) {
      return refuse(std::to_string(layer.in) + " input channels in groups of " + std::to_string(args.group_size));
    }
    return {};
  }

  static Result<QuantArgs> args_of(std::string_view quantization_config) {
    static const std::regex bits(R"("bits"\s*:\s*([2-8])\b)"), symmetric(R"("symmetric"\s*:\s*(true|false))");
    const std::string text(quantization_config);
    std::smatch found_bits, found_symmetric;
    if (!std::regex_search(text, found_bits, bits) || !std::regex_search(text, found_symmetric, symmetric)) {
      return Status(Code::kCorrupt, "config.json: quantization_config lacks \"bits\" from 2 to 8, or \"symmetric\"");
    }
    QuantArgs args;
    args.bits = std::stoi(found_bits[1]);
    args.symmetric = found_symmetric[1] == "true";
    return args;
  }

  /// The groups follow from the shapes: a file never says a thing twice.
  static Result<StoredLayer> stored_layer(const TensorReader& reader, const std::string& name, const TensorSpec& codes, const QuantArgs& args) {
    const auto corrupt = [&](const std::string& what) { return Status(Code::kCorrupt, name + ": " + what); };
    const auto scale = reader.tensors().find(name + std::string(kScale));
    if (scale == reader.tensors().end()) return corrupt("has codes, but no " + name + std::string(kScale));
    const std::vector<int64_t>& shape = scale->second.shape;
    const bool fits = codes.dtype == Dtype::kI8 && codes.shape.size() == 2 && shape.size() == 2 && shape[0] == codes.shape[0] &&
                      shape[1] > 0 && codes.shape[1] % shape[1] == 0;
    if (!fits) return corrupt("codes " + shape_string(codes.shape) + " and scales " + shape_string(shape) + " do not fit together");
    StoredLayer layer;
    layer.name = name;
    layer.out = codes.shape[0];
    layer.in = codes.shape[1];
    layer.tensors = {codes.name, scale->second.name};
    layer.scheme.name = "my_format";
    layer.scheme.weight = args;
    layer.scheme.weight->granularity = shape[1] == 1 ? Granularity::kChannel : Granularity::kGroup;
    layer.scheme.weight->group_size = layer.in / shape[1];
    const auto zero = reader.tensors().find(name + std::string(kZero));
    const bool has_zero = zero != reader.tensors().end();
    if (has_zero == args.symmetric) return corrupt(args.symmetric ? "has zero points, but is symmetric" : "has no zero points");
    if (!has_zero) return layer;
    if (zero->second.shape != shape || zero->second.dtype != Dtype::kI8) return corrupt("its zero points do not fit its scales");
    layer.tensors.push_back(zero->second.name);
    return layer;
  }

  static Status check_codes(const at::Tensor& codes, const QuantArgs& args, const std::string& tensor) {
    const int64_t low = codes.min().item<int64_t>(), high = codes.max().item<int64_t>();
    if (low >= args.min_code() && high <= args.max_code()) return {};
    return {Code::kCorrupt, tensor + ": values from " + std::to_string(low) + " to " + std::to_string(high) + ", " +
                                std::to_string(args.bits) + " bits hold " + std::to_string(args.min_code()) + " to " +
                                std::to_string(args.max_code())};
  }
};
}  // namespace

SLIM_FORMAT_PLUGIN("my_format", MyFormat, "Plain int8 codes beside their scales")
