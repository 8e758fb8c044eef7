#pragma once
#include <string>
#include <vector>

#include "slim/algorithm.hpp"

namespace slim {

/// One option as its plugin's schema describes it, for listings.
struct OptionInfo {
  std::string name, type, description, fallback,
      range;  ///< fallback: the default, or empty; range: "0..1", "a | b"
};

/// Checks raw options against a plugin's JSON Schema and fills in defaults. The subset: an object whose "properties" are of
/// type string, integer, number or boolean, with description, default, enum, minimum, maximum, exclusiveMinimum and
/// exclusiveMaximum. `plugin` leads every message. kInvalidArgument: the user's options; kInternal: the schema itself.
SLIM_API Result<Options> check_options(const std::string& plugin, const std::string& schema,
                                       const Options& raw);
SLIM_API Result<std::vector<OptionInfo>> describe_options(const std::string& plugin,
                                                          const std::string& schema);

}  // namespace slim
