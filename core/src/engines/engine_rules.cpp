#include "engines/engine_rules.h"

#include <algorithm>

namespace slim::engines {
namespace {

const Scheme* scheme_of(const ServedCheckpoint& served, const Layer& layer) {
  const auto found = served.schemes.find(layer.name);
  return found == served.schemes.end() ? nullptr : &found->second;
}

/// What an engine's one weight has: names differ, and what is pruned besides does not show.
bool same_scheme(const Scheme* one, const Scheme* other) {
  if (!one || !other) return one == other;
  return one->weight == other->weight && one->input == other->input;
}

}  // namespace

void ProblemList::add(const std::string& layer, const std::string& what) {
  for (Problem& problem : problems_) {
    if (problem.what == what) return void(++problem.layers);
  }
  problems_.push_back({what, layer});
}

std::vector<std::string> ProblemList::lines() const {
  std::vector<std::string> lines;
  for (const Problem& problem : problems_) {
    const std::string more =
        problem.layers > 1 ? " (and " + std::to_string(problem.layers - 1) + " more)" : "";
    lines.push_back((problem.first.empty() ? "" : problem.first + more + ": ") + engine_ + " " +
                    problem.what);
  }
  return lines;
}

void for_quantized(const ServedCheckpoint& served,
                   const std::function<void(const BlockPlan&, const Layer&, const Scheme&)>& visit) {
  for (const BlockPlan& block : served.plan->blocks) {
    for (const Layer& layer : block.layers) {
      if (const Scheme* scheme = scheme_of(served, layer)) visit(block, layer, *scheme);
    }
  }
}

void check_fused_groups(const ServedCheckpoint& served, ProblemList& problems) {
  for (const BlockPlan& block : served.plan->blocks) {
    for (const FusedGroup& group : block.fused) {
      const Layer& first = block.layers[group.layers.front()];
      for (const LayerId id : group.layers) {
        if (same_scheme(scheme_of(served, first), scheme_of(served, block.layers[id]))) continue;
        problems.add(block.layers[id].name + " and " + first.name,
                     "merges them, and they have different schemes");
        break;
      }
    }
  }
}

void check_experts(const ServedCheckpoint& served, ProblemList& problems) {
  for (const BlockPlan& block : served.plan->blocks) {
    const Layer* first = nullptr;
    for (const Layer& layer : block.layers) {
      if (layer.expert < 0) continue;
      if (!first) first = &layer;
      if (same_scheme(scheme_of(served, *first), scheme_of(served, layer))) continue;
      problems.add(layer.name + " and " + first->name,
                   "keeps all experts of a block in one tensor: they need one scheme");
      break;
    }
  }
}

}  // namespace slim::engines
