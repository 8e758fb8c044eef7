#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "slim/abi.h"
#include "slim/status.hpp"

namespace slim {

/// What must agree before C++ objects may cross between slim and a plugin.
struct AbiFacts {
  uint32_t api_major = 0, api_minor = 0;
  std::string torch;       ///< "2.11.0"
  uint64_t torch_abi = 0;  ///< 0: not said (the metadata section has no such entry)
  std::string cxx11_abi, gxx_abi, build_tag;
  std::string interface;  ///< SLIM_INTERFACE; empty: not said (the descriptor has no such entry)
};

/// This library's own.
SLIM_API AbiFacts host_facts();
/// kCorrupt if an entry is missing or malformed.
Result<AbiFacts> facts_of(const std::map<std::string, std::string>& metadata);
AbiFacts facts_of(const slim_plugin&);
/// kIncompatible says what differs, both sides' values, and what to do.
SLIM_API Status check_compatible(const AbiFacts& plugin, const AbiFacts& host);
/// Component i. Steps by the size that the plugin's own header gave the struct: a newer one may be longer.
const slim_component& component_at(const slim_plugin&, uint32_t i);
/// The descriptor's own form (magic, sizes, pointers), and its components'.
Status check_descriptor(const slim_plugin&);

}  // namespace slim
