#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "slim/format.hpp"

namespace slim::formats {

/// quantization_config of a model in GPTQ format: the quantization that most layers have, others and those left in
/// float under "dynamic", as GPTQModel and vLLM read it; what is not left in float under "modules_in_block_to_quantize" for transformers.
std::string write_gptq_config(const OutputModel&, int version);

/// Regular expressions for the layers in float that GPTQModel would take for quantized ones, because other blocks or towers have
/// the like in quantized form: keys of "dynamic", without "-:".
std::vector<std::string> patterns_in_float(const OutputModel&);

/// quantization_config of a GPTQ checkpoint.
class GptqConfig {
 public:
  static Result<GptqConfig> parse(std::string_view json);
  /// 1 or 2 by "checkpoint_format" (or "format"); nullopt if the text is no GPTQ configuration.
  static std::optional<int> version(std::string_view json);
  /// How a module's weight is quantized; kCorrupt if the configuration leaves it in float.
  Result<QuantArgs> find(const std::string& module) const;
  /// Names of layers in float that loaders take for quantized ones: neither left out by "dynamic" nor by "modules_in_block_to_quantize",
  /// while others of their stage are quantized. Heads and routers are known to stay in float.
  std::vector<std::string> taken_for_quantized(const OutputModel& found) const;
  /// True if engines read g_idx.
  bool desc_act() const { return desc_act_; }

 private:
  struct Rule {
    std::string pattern;
    std::optional<QuantArgs> args;  ///< empty: left in float
  };
  QuantArgs base_;
  std::vector<Rule> rules_;
  std::vector<std::string> in_block_;  ///< ends of quantized names; empty: all
  bool desc_act_ = false;
};

}  // namespace slim::formats
