#pragma once
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "slim/status.hpp"

namespace slim {

/// The "key=value" entries of the section `slim_meta` of a shared library, found through its section headers; none of its code
/// runs. A pure function of untrusted bytes: every offset and size is checked. 64-bit little-endian libraries for this
/// machine only. kIncompatible: not such a library; kCorrupt: it contradicts itself; kNotFound: no such section, so no slim
/// plugin. Messages name no file.
SLIM_API Result<std::map<std::string, std::string>> read_plugin_metadata(std::span<const std::byte> file);

/// What the dynamic linker would do with a shared library.
struct LibraryFacts {
  std::vector<std::string> needed;    ///< the libraries that it asks for, as written there
  std::vector<std::string> exported;  ///< its defined symbols that others may use, unsorted
};
/// The same promises as read_plugin_metadata; a library without dynamic sections has no facts.
SLIM_API Result<LibraryFacts> read_library_facts(std::span<const std::byte> file);

}  // namespace slim
