#pragma once
#include <vector>

#include "slim/progress.hpp"

namespace slim {

/// The reports of a run's outputs as one: itself, or {"outputs": [...]} of several.
SLIM_API Report join_reports(const std::vector<Report>&);

}  // namespace slim
