#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "run/model.h"
#include "slim/format.hpp"

namespace slim {

/// What happens to one layer.
struct LayerDecision {
  std::optional<Scheme> scheme;     ///< empty: stays in float
  std::string reason;               ///< why it stays in float
  std::vector<TensorSpec> outputs;  ///< what its weight becomes; empty: its tensor is written as it is
};

/// Every decision of a run, made from headers alone: before any weight is read.
struct RunPlan {
  std::vector<std::vector<LayerDecision>> layers;  ///< [block][layer]
  std::vector<TensorSpec> outputs;                 ///< everything that is written, in the order of the shards
  std::vector<std::string> ignore;                 ///< describes exactly the layers left in float
  /// Input tensors that become something else; every other tensor of the index is written under its own name.
  std::set<std::string> replaced;
  int64_t quantized_weights = 0, float_weights = 0;  ///< elements of linear layers
  double quantized_bits = 0;                       ///< on disk, for the quantized_weights
  std::vector<std::string> indivisible;            ///< layers whose width the group does not divide, with both numbers

  const Scheme* scheme(int32_t block, LayerId layer) const {
    const auto& decision = layers[block][layer];
    return decision.scheme ? &*decision.scheme : nullptr;
  }
  /// For Algorithm::observe.
  std::vector<const Scheme*> schemes(int32_t block) const;
  bool quantizes(int32_t block) const;
};

/// The algorithms of a run, set up; the scheme they produce; and the format that stores it.
struct Recipe {
  std::vector<std::string> algorithm_ids;
  std::vector<Owned<Algorithm>> algorithms;
  Scheme scheme;
  std::string format_id;
  Owned<Format> format;

  static Result<Recipe> make(const RunConfig&, PluginRegistry&);
  /// The algorithm whose solve() is asked: the last of the chain that solves; null: plain rounding.
  Algorithm* solver() const;
  std::string solver_id() const;
};

SLIM_API Result<RunPlan> make_run_plan(const RunConfig&, const Model&, const Recipe&);

/// Memory that a run takes at most, about: that of the block that needs most, with its weights and the next block's (prefetched),
/// fp32 work on its largest layer, the statistics, and the hidden states of all samples at its entry and exit.
int64_t peak_bytes(const RunConfig&, const Model&, const Recipe&, const RunPlan&);

}  // namespace slim
