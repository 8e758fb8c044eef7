#pragma once
#include <string>
#include <vector>

#include "config/run_config.h"
#include "model/model_fingerprint.h"
#include "plan/run_plan.h"
#include "plugin/registry.h"

namespace slim {

/// Gathers everything that an output's bytes depend on: the model and its files, the configuration, data files, plugins and slim itself
/// (by their contents), threads and processor. `backend`: the id of the one that is used.
SLIM_API Result<Fingerprint> run_fingerprint(const RunConfig&, const std::string& backend,
                                             const std::vector<const OutputPlan*>&, const Model&,
                                             PluginRegistry&);

}  // namespace slim
