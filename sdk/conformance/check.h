#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "plugin/registry.h"

/// What `slim plugins validate` asks of a plugin. Every check runs in a process of its own: it may crash, hang, and leave behind
/// what it likes.
namespace slim::conformance {

/// The plugin under test.
struct Subject {
  PluginInfo info;
  std::string model;  ///< a checkpoint for adapters, or empty
  uint64_t seed = 0;  ///< of everything random
};

/// A check that did not fail.
struct Outcome {
  bool skipped = false;
  std::string message;  ///< why it was skipped, or what was found
};
inline Outcome skipped(std::string why) { return {true, std::move(why)}; }

struct Check {
  std::string id;       ///< "algorithm/same-seed"
  std::string summary;  ///< what must be true
  Result<Outcome> (*run)(const Subject&);
};

/// The checks for a plugin of this kind, in the order in which they help its author most.
std::vector<Check> checks_for(slim_kind);

// One file each.
std::vector<Check> library_checks();
std::vector<Check> option_checks();
std::vector<Check> algorithm_checks();
std::vector<Check> adapter_checks();
std::vector<Check> backend_checks();
std::vector<Check> format_checks();

/// What a backend's open() says where neither driver nor device is: nothing that the plugin could help.
inline bool no_device(const Status& opened) {
  return opened.code() == Code::kNotFound || opened.code() == Code::kUnsupported;
}

/// Memory of this process that lies in RAM.
int64_t resident_kilobytes();

/// A failed check.
inline Status failure(const std::string& message) { return Status(Code::kVerification, message); }

}  // namespace slim::conformance
