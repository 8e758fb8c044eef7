#pragma once
#include <toml++/toml.h>

#include <map>
#include <string>

#include "slim/status.hpp"

namespace slim {

/// A configuration as TOML has it, and where its parts stand.
struct ConfigDocument {
  toml::table table;
  std::map<const toml::node*, int64_t>
      lines;  ///< from 1; of what comes from YAML: toml++ knows the lines of its own
};

/// True for names that end in .yaml or .yml.
bool is_yaml(const std::string& path);
/// Reads YAML 1.2: mappings, lists and plain values; null leaves a key out. kInvalidArgument names file and line; anchors may not multiply beyond 100,000 nodes.
Result<ConfigDocument> parse_yaml(const std::string& text, const std::string& path);

}  // namespace slim
