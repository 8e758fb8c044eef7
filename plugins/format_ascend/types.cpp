#include "types.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace slim::ascend {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"W4A16", "W8A16", "W8A8_DYNAMIC", "W8A8", "W8A8S"};

Status unsupported(const Scheme& scheme, const std::string& why) {
  return {Code::kUnsupported, "format ascend has no type for scheme " + scheme.name + ": " + why};
}

bool is_rows_or_groups(const QuantArgs& weight) {
  return weight.granularity == Granularity::kChannel || weight.granularity == Granularity::kGroup;
}

Result<Type> weight_only_type(const Scheme& scheme) {
  const QuantArgs& weight = *scheme.weight;
  if (!is_rows_or_groups(weight)) return unsupported(scheme, "weights have scales per row or group");
  if (weight.bits == 8) return Type::kW8A16;
  if (weight.bits != 4) {
    return unsupported(scheme, "weights have 4 or 8 bits, found " + std::to_string(weight.bits) +
                                   "; compressed-tensors and gptq hold others");
  }
  if (weight.granularity == Granularity::kGroup) return Type::kW4A16;
  return unsupported(
      scheme, "4-bit weights need groups here; set group_size, or use compressed-tensors, awq or gptq");
}

}  // namespace

std::string_view type_name(Type type) { return kNames[static_cast<size_t>(type)]; }

std::string lower_name(Type type) {
  std::string name(type_name(type));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

Result<Type> type_of(const Scheme& scheme) {
  if (!scheme.weight || scheme.sparsity)
    return unsupported(scheme, "it prunes, or leaves weights in float; compressed-tensors holds it");
  const QuantArgs& weight = *scheme.weight;
  if (weight.type == NumberType::kFloat)
    return unsupported(scheme, "codes are integers; compressed-tensors holds FP8");
  if (!scheme.input) return weight_only_type(scheme);
  const QuantArgs& input = *scheme.input;
  if (weight.bits != 8 || input.bits != 8 || input.type == NumberType::kFloat || !weight.symmetric) {
    return unsupported(scheme,
                       "with quantized activations both are 8-bit integers, weights without zero points; "
                       "compressed-tensors holds others");
  }
  const bool low_bit = scheme.name == "w8a8s";
  if (weight.granularity != Granularity::kChannel &&
      !(low_bit && weight.granularity == Granularity::kTensor)) {
    return unsupported(scheme, "8-bit weights have one scale a row; compressed-tensors holds others");
  }
  if (input.dynamic && input.granularity == Granularity::kToken && input.symmetric && !low_bit)
    return Type::kW8A8Dynamic;
  if (!input.dynamic && input.granularity == Granularity::kTensor)
    return low_bit ? Type::kW8A8S : Type::kW8A8;
  return unsupported(scheme,
                     "activations are static per tensor, or dynamic per token and symmetric; "
                     "compressed-tensors holds others");
}

c10::ScalarType scale_dtype(Type type, c10::ScalarType model_dtype) {
  const bool wide = type == Type::kW8A8S || type == Type::kW4A16 ||
                    (type == Type::kW8A8 && model_dtype == c10::ScalarType::Half);
  return wide ? c10::ScalarType::Float : model_dtype;
}

}  // namespace slim::ascend
