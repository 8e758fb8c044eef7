#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "slim/format.hpp"

namespace slim::compressed_tensors {

/// How a scheme lies on disk; the value of "format" in quantization_config.
/// kDense: in the model's dtype, for layers that are only pruned.
enum class Storage : uint8_t { kPacked, kInt, kFloat, kDense };
std::string_view storage_name(Storage);
/// The value of "strategy".
std::string_view strategy_name(Granularity);
/// kUnsupported (what and why) for schemes that the format, or every engine that reads it, cannot hold.
Result<Storage> storage_of(const Scheme&);

/// quantization_config of a model, as compressed-tensors 0.19 writes it. Empty if nothing is quantized.
Result<std::string> write_config(const OutputModel&);

/// quantization_config of a checkpoint, as far as weights and their inputs go.
class Config {
 public:
  static Result<Config> parse(std::string_view json);
  /// Where it and the tensors of a checkpoint say different things to an engine (Format::contradictions()).
  std::vector<std::string> contradictions(const OutputModel& found) const;
  /// The scheme of a module: an exact name beats a pattern, a pattern beats the class "Linear". Null: left in float.
  const Scheme* find(const std::string& module) const;

 private:
  struct Target {
    std::string text;  // a module name, "re:PATTERN", or a class name
    size_t scheme;
  };
  std::vector<Scheme> schemes_;
  std::vector<Target> targets_;
  std::vector<std::string> ignore_;
  std::string status_, format_;  ///< as they stand there
  bool cache_ = false;           ///< kv_cache_scheme is there
};

}  // namespace slim::compressed_tensors
