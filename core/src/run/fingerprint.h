#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plugin/registry.h"
#include "run/model.h"
#include "run/run_plan.h"

namespace slim {

/// What a stored result depends on: a name for people ("config.json of the model") and its value.
using Fingerprint = std::map<std::string, std::string>;

/// The entry of weight_files_stamp() in a run's fingerprint.
inline constexpr const char* kWeightFiles = "the model's weight files";
/// Sizes and times of the last change of the model's weight files.
SLIM_API std::string weight_files_stamp(const Model&);
/// config.json, and of every tensor name, type, shape and first bytes.
SLIM_API Result<Fingerprint> model_fingerprint(const Model&);
/// Everything that an output's bytes depend on: the model and its files, the configuration, data files, plugins and slim itself (by
/// their contents), threads and processor. `backend`: the id of the one that is used.
SLIM_API Result<Fingerprint> run_fingerprint(const RunConfig&, const std::string& backend,
                                             const std::vector<const OutputPlan*>&, const Model&,
                                             PluginRegistry&);
/// "the model's config.json is 1a2b, expected 3c4d; ..." where `found` differs from `expected`, or lacks an entry; empty if they agree.
SLIM_API std::string difference(const Fingerprint& found, const Fingerprint& expected);
SLIM_API std::string fingerprint_json(const Fingerprint&);
SLIM_API Result<Fingerprint> parse_fingerprint(std::string_view json);

}  // namespace slim
