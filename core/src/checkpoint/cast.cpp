#include "checkpoint/cast.h"

#include <ATen/ATen.h>

#include <utility>

#include "util/strict_json.h"

namespace slim {
namespace {

constexpr std::pair<std::string_view, at::ScalarType> kKeys[] = {
    {"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};

}  // namespace

std::string_view dtype_key(at::ScalarType dtype) {
  for (const auto& [key, type] : kKeys)
    if (type == dtype) return key;
  return {};
}

std::optional<at::ScalarType> dtype_of_key(std::string_view key) {
  for (const auto& [name, type] : kKeys)
    if (name == key) return type;
  return std::nullopt;
}

Result<at::Tensor> cast_checked(const std::string& name, const at::Tensor& tensor, Dtype dtype) {
  const auto type = to_scalar_type(dtype);
  if (!type || tensor.scalar_type() == *type || !at::isFloatingType(tensor.scalar_type())) return tensor;
  at::Tensor cast = tensor.to(*type);
  const at::Tensor lost = at::isfinite(cast).logical_not_().logical_and_(at::isfinite(tensor));
  if (!lost.any().item<bool>()) return cast;
  const auto value = tensor.masked_select(lost).flatten()[0].item<double>();
  return Status(Code::kNumeric, "tensor " + name + " holds " + std::to_string(value) + ", which " +
                                    std::string(dtype_key(*type)) +
                                    " cannot hold; choose --output-dtype bfloat16 or keep");
}

std::optional<at::ScalarType> declared_dtype(std::string_view config_json) {
  const auto config = parse_strict_json(config_json);
  if (!config.ok() || !config->is_object()) return std::nullopt;
  const auto in = [](const nlohmann::ordered_json& object) -> std::optional<at::ScalarType> {
    for (const char* key : {"dtype", "torch_dtype"}) {
      const auto found = object.find(key);
      if (found == object.end() || !found->is_string()) continue;
      if (const auto type = dtype_of_key(found->get<std::string>())) return type;
    }
    return std::nullopt;
  };
  if (const auto type = in(*config)) return type;
  const auto text = config->find("text_config");
  return text != config->end() && text->is_object() ? in(*text) : std::nullopt;
}

}  // namespace slim
