#include "description.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace slim::ascend {
namespace {

using Json = nlohmann::ordered_json;
constexpr char kModelType[] = "model_quant_type";

Status corrupt(const std::string& what) { return {Code::kCorrupt, "quant_model_description.json: " + what}; }

/// The one group size of all layers that have groups; 0 without one.
int64_t common_group_size(const OutputModel& output) {
  int64_t size = 0;
  for (const auto& [name, scheme] : output.schemes) {
    if (!scheme.weight || scheme.weight->granularity != Granularity::kGroup) continue;
    if (size != 0 && size != scheme.weight->group_size) return 0;  // the shapes of the scales say it
    size = scheme.weight->group_size;
  }
  return size;
}

/// A layer's tensors have its type, but for the bias that stays as it was.
Result<std::string> tensor_type(const OutputModel& output, const std::string& tensor) {
  const size_t dot = tensor.rfind('.');
  const auto scheme = output.schemes.find(tensor.substr(0, dot));
  if (dot == std::string::npos || scheme == output.schemes.end() || tensor.substr(dot) == ".bias")
    return std::string("FLOAT");
  SLIM_ASSIGN(const Type type, type_of(scheme->second));
  return std::string(type_name(type));
}

}  // namespace

Result<Type> model_type(const OutputModel& output) {
  Type last = Type::kW4A16;
  for (const auto& [name, scheme] : output.schemes) {
    SLIM_ASSIGN(const Type type, type_of(scheme));
    last = std::max(last, type);
  }
  return last;
}

Result<std::string> write_description(const OutputModel& output) {
  SLIM_ASSIGN(const Type type, model_type(output));
  Json json = {{"version", "1.0.0"}, {kModelType, type_name(type)}};
  if (const int64_t group = common_group_size(output); group > 0) json["group_size"] = group;
  for (const auto& [name, spec] : output.tensors) {
    SLIM_ASSIGN(json[name], tensor_type(output, name));
  }
  return json.dump(2) + "\n";
}

bool Description::recognises(std::string_view text) {
  const auto json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains(kModelType) && json[kModelType].is_string();
}

Result<Description> Description::parse(std::string_view text) {
  const auto json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return corrupt("is no JSON object");
  Description description;
  for (const auto& [name, value] : json.items()) {
    if (name.find('.') == std::string::npos) continue;
    if (!value.is_string())
      return corrupt("'" + name + "' is " + value.type_name() + ", expected the name of a type");
    description.types_[name] = value.get<std::string>();
  }
  return description;
}

Status Description::check(const std::map<std::string, TensorSpec>& tensors) const {
  for (const auto& [name, type] : types_) {
    if (!tensors.contains(name))
      return corrupt("tensor '" + name + "' is described as " + type + ", but missing in the weights");
  }
  for (const auto& [name, spec] : tensors) {
    if (!types_.contains(name)) return corrupt("tensor '" + name + "' is in the weights, but not described");
  }
  return {};
}

}  // namespace slim::ascend
