#include "common/stored_layer.hpp"

#include <ATen/ATen.h>

#include <algorithm>

namespace slim::formats {
namespace {

bool in_range(const at::Tensor& codes, const QuantArgs& args) {
  if (codes.numel() == 0 || codes.scalar_type() != at::kChar) return true;
  const auto [low, high] = at::aminmax(codes);
  return low.item<int64_t>() >= args.min_code() && high.item<int64_t>() <= args.max_code();
}

std::string description(const TensorSpec& spec) {
  return std::string(dtype_name(spec.dtype)) + " " + shape_string(spec.shape);
}

}  // namespace

std::vector<std::string> modules_beside(const OutputModel& model) {
  std::set<std::string_view> layers;
  for (const BlockPlan& block : model.plan->blocks) {
    for (const Layer& layer : block.layers) layers.insert(layer.name);
  }
  std::vector<std::string> names;
  for (const std::string& entry : model.ignore) {
    if (!entry.starts_with("re:") && !layers.contains(entry)) names.push_back(entry);
  }
  return names;
}

std::vector<int64_t> scale_shape(const QuantArgs& args, int64_t out, int64_t in) {
  const auto ceil_div = [](int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); };
  switch (args.granularity) {
    case Granularity::kChannel:
      return {out, 1};
    case Granularity::kGroup:
      return {out, in / args.group_size};
    case Granularity::kBlock:
      return {ceil_div(out, args.block_rows), ceil_div(in, args.block_columns)};
    default:
      return {1, 1};
  }
}

Status check_groups(const Layer& layer, const QuantArgs& args) {
  if (args.granularity != Granularity::kGroup || layer.in % args.group_size == 0) return {};
  return {Code::kUnsupported, layer.name + ": groups of " + std::to_string(args.group_size) +
                                  " do not divide its " + std::to_string(layer.in) +
                                  " input channels; choose another group size, or ignore this layer"};
}

Result<const Quantized*> check_result(const Layer& layer, const Scheme& scheme, const Solved& solved,
                                      c10::ScalarType scale_dtype) {
  const auto wrong = [&](const std::string& what) {
    return Status(Code::kInternal, layer.name + ": the algorithm's result has " + what);
  };
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  if (!quantized) return wrong("a float weight, scheme " + scheme.name + " quantizes it");
  if (!scheme.weight || quantized->args != *scheme.weight)
    return wrong("another quantization than scheme " + scheme.name);
  const std::vector<int64_t> scales = scale_shape(quantized->args, layer.out, layer.in);
  if (quantized->codes.sizes() != at::IntArrayRef({layer.out, layer.in}))
    return wrong("codes of a wrong shape");
  if (!in_range(quantized->codes, quantized->args))
    return wrong("codes that " + std::to_string(quantized->args.bits) + " bits do not hold");
  if (!quantized->scale.defined() || quantized->scale.sizes() != at::IntArrayRef(scales))
    return wrong("scales of a wrong shape");
  if (quantized->args.symmetric == quantized->zero.defined())
    return wrong("zero points that contradict the scheme");
  if (quantized->zero.defined() && quantized->zero.sizes() != at::IntArrayRef(scales))
    return wrong("zero points of a wrong shape");
  if (quantized->zero.defined() && !in_range(quantized->zero, quantized->args))
    return wrong("zero points out of range");
  const at::Tensor stored = quantized->scale.to(scale_dtype).to(at::kFloat);
  if (!(at::isfinite(stored) & (stored > 0)).all().item<bool>()) {
    return Status(Code::kNumeric, layer.name + ": a scale is not positive and finite in " +
                                      std::string(c10::toString(scale_dtype)));
  }
  return quantized;
}

Status corrupt(const std::string& where, const std::string& what) {
  return {Code::kCorrupt, where + ": " + what};
}

std::set<std::string> modules_with(const std::map<std::string, TensorSpec>& tensors,
                                   std::span<const std::string_view> suffixes) {
  std::set<std::string> modules;
  for (const auto& [name, spec] : tensors) {
    for (const std::string_view suffix : suffixes) {
      if (name.ends_with(suffix)) modules.insert(name.substr(0, name.size() - suffix.size()));
    }
  }
  return modules;
}

Result<TensorSpec> find_tensor(const std::string& module, const std::string& name,
                               const std::map<std::string, TensorSpec>& tensors) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return corrupt(module, "tensor " + name + " is missing");
  const std::vector<int64_t>& shape = found->second.shape;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
    return corrupt(module,
                   "tensor " + name + " has the shape " + shape_string(shape) + ", which holds nothing");
  }
  return found->second;
}

Status check_tensors(const std::string& module, const std::vector<TensorSpec>& expected,
                     const std::map<std::string, TensorSpec>& tensors,
                     std::span<const std::string_view> suffixes) {
  std::set<std::string> names;
  for (const TensorSpec& spec : expected) {
    names.insert(spec.name);
    SLIM_ASSIGN(const TensorSpec stored, find_tensor(module, spec.name, tensors));
    if (stored.dtype != spec.dtype || stored.shape != spec.shape) {
      return corrupt(spec.name, "expected " + description(spec) + ", found " + description(stored));
    }
  }
  for (const std::string_view suffix : suffixes) {
    const std::string name = module + std::string(suffix);
    if (tensors.contains(name) && !names.contains(name))
      return corrupt(name, "the module's scheme has no such tensor");
  }
  if (!names.contains(module + ".weight") && tensors.contains(module + ".weight")) {
    return corrupt(module + ".weight", "the module is packed and has a float weight too");
  }
  return {};
}

Result<StoredLayer> packed_layer(const std::string& module, int64_t out, int64_t in, const QuantArgs& args,
                                 PackedLayout layout, const std::map<std::string, TensorSpec>& tensors,
                                 std::span<const std::string_view> suffixes) {
  SLIM_ASSIGN(const TensorSpec scales, find_tensor(module, module + ".scales", tensors));
  if (in <= 0 || out <= 0 || (args.granularity == Granularity::kGroup && in % args.group_size != 0)) {
    return corrupt(module + ".qweight", "groups of " + std::to_string(args.group_size) + " do not divide " +
                                            std::to_string(in) + " input channels");
  }
  const Dtype scale = scales.dtype == Dtype::kBF16 ? Dtype::kBF16 : Dtype::kF16;
  const std::vector<TensorSpec> expected = layout(module, out, in, args, scale);
  SLIM_TRY(check_tensors(module, expected, tensors, suffixes));
  StoredLayer layer{module, out, in, {"", args, {}, {}}, {}};
  layer.scheme.name = scheme_name(layer.scheme);
  for (const TensorSpec& spec : expected) layer.tensors.push_back(spec.name);
  return layer;
}

Result<at::Tensor> read_scale(const TensorReader& reader, const std::string& name) {
  SLIM_ASSIGN(at::Tensor tensor, reader.read(name));
  const at::Tensor values = tensor.to(at::kFloat);
  if (!at::isfinite(values).all().item<bool>()) return corrupt(name, "holds NaN or Inf");
  if ((values < 0).any().item<bool>()) return corrupt(name, "holds a negative scale");
  return tensor;
}

std::string scheme_name(const Scheme& scheme) {
  const bool grouped = scheme.weight && scheme.weight->granularity == Granularity::kGroup;
  for (const std::string& name : scheme_names()) {
    for (const int64_t size : {int64_t{0}, grouped ? scheme.weight->group_size : int64_t{-1}}) {
      const Result<Scheme> known = scheme_from_name(name, size);
      if (known.ok() && known->weight == scheme.weight && known->input == scheme.input &&
          known->sparsity == scheme.sparsity)
        return name;
    }
  }
  return std::to_string(scheme.weight ? scheme.weight->bits : 16) + " bit";
}

}  // namespace slim::formats
