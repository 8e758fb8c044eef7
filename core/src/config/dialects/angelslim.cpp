#include "config/dialects/angelslim.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace slim::angelslim {
namespace {

constexpr std::pair<const char*, const char*> kClasses[] = {
    {"Qwen", "qwen"},          {"QwenVL", "qwen2_5_vl"},    {"Qwen3VL", "qwen3vl"},
    {"Qwen3VLMoE", "qwen3vl"}, {"HunyuanDense", "hunyuan"}, {"HunyuanMoE", "hunyuan"},
    {"Llama", "qwen"}};

constexpr SchemeName kSchemes[] = {{"int4_awq", "w4a16", "w4a16_asym", "awq", true},
                                   {"int4_gptq", "w4a16", "w4a16_asym", "gptq", false},
                                   {"int8_dynamic", "w8a8", nullptr, "int8", false},
                                   {"fp8_static", "fp8_static", nullptr, "fp8", false},
                                   {"fp8_dynamic", "fp8_dynamic", nullptr, "fp8", false},
                                   {"fp8_blockwise", "fp8_block", nullptr, "fp8", false}};

}  // namespace

std::string adapter_of(const std::string& model_class) {
  for (const auto& [name, adapter] : kClasses) {
    if (model_class == name) return adapter;
  }
  return model_class;
}

std::string model_classes() {
  std::string list;
  for (const auto& [name, adapter] : kClasses) list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

const SchemeName* scheme_name(const std::string& name) {
  const auto found = std::find_if(std::begin(kSchemes), std::end(kSchemes),
                                  [&](const SchemeName& entry) { return name == entry.name; });
  return found == std::end(kSchemes) ? nullptr : found;
}

bool is_generic(const std::string& algorithm) {
  return algorithm == "PTQ" || algorithm == "PTQWeightOnly" || algorithm == "quantization";
}

}  // namespace slim::angelslim
