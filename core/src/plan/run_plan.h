#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "model/model.h"
#include "plan/recipe.h"
#include "slim/format.hpp"

namespace slim {

class StatisticSet;

/// What happens to one layer.
struct LayerDecision {
  std::optional<Scheme> scheme;     ///< empty: stays in float
  size_t part = 0;                  ///< of the recipe; of quantized layers
  std::string reason;               ///< why it stays in float
  std::vector<TensorSpec> outputs;  ///< what its weight becomes; empty: its tensor is written as it is
};

/// A layer whose width its group does not divide.
struct IndivisibleLayer {
  std::string name;
  int64_t in = 0, group_size = 0;
};

/// Every decision of a run, made from headers alone: before any weight is read.
struct RunPlan {
  std::vector<std::vector<LayerDecision>> layers;  ///< [block][layer]
  std::vector<TensorSpec> outputs;                 ///< everything that is written, in the order of the shards
  std::vector<std::string> ignore;                 ///< describes exactly the layers left in float
  /// Input tensors that become something else; every other tensor of the index is written under its own name.
  std::set<std::string> replaced;
  int64_t quantized_weights = 0, float_weights = 0;  ///< elements of linear layers
  double quantized_bits = 0;                         ///< on disk, for the quantized_weights
  std::vector<IndivisibleLayer> indivisible;
  int64_t common_group =
      0;  ///< group size that took the place of the scheme's, so that it divides every layer; 0: none
  std::map<std::string, int64_t> layers_of_scheme;  ///< how many layers have it
  at::ScalarType dtype = at::kBFloat16;             ///< of the output: of scales, and of what was cast
  bool cast = false;      ///< float tensors are written in `dtype`, in which they are not stored
  bool kv_cache = false;  ///< scales of an FP8 key/value cache are written

  const Scheme* scheme(int32_t block, LayerId layer) const {
    const auto& decision = layers[block][layer];
    return decision.scheme ? &*decision.scheme : nullptr;
  }
  /// For Algorithm::observe of a part: the layers of all others are null.
  std::vector<const Scheme*> schemes(int32_t block, size_t part) const;
  bool quantizes(int32_t block) const;
  /// True if anything of the block's is made new: layers, or scales of its cache.
  bool changes(const BlockPlan& block) const {
    return quantizes(block.index) || (kv_cache && !block.caches.empty());
  }
};

/// One checkpoint that a run writes.
struct OutputPlan {
  RunConfig config;
  Recipe recipe;
  RunPlan plan;
};

/// What a run is planned from: no file is read for it. Must outlive what is made with it.
struct ModelFacts {
  const ModelPlan& plan;
  const std::map<std::string, TensorSpec>& tensors;  ///< by their logical names
  at::ScalarType dtype = at::kBFloat16;              ///< of most elements
  std::string adapter_id;                            ///< for messages
  std::optional<at::ScalarType> declared;            ///< by config.json
};
ModelFacts facts_of(const Model&);

/// The recipe of each output of the configuration; their plans are made with the model.
SLIM_API Result<std::vector<OutputPlan>> make_recipes(const RunConfig&, PluginRegistry&);
/// kUnsupported: the engine that an output is for would not load or run it.
SLIM_API Status make_run_plans(std::vector<OutputPlan>&, const Model&);
/// What formats are told of the whole output; valid while the model is.
OutputModel describe_output(const ModelFacts&, const RunPlan&);
/// Decides what becomes of every tensor. kInvalidArgument or kUnsupported names the layer, pattern or rule that cannot be.
SLIM_API Result<RunPlan> make_run_plan(const RunConfig&, const ModelFacts&, const Recipe&);

/// Says in which dtype the output's float tensors are written, where that is float32 or not the stored one; else empty.
SLIM_API std::string output_dtype_text(const RunConfig&, const RunPlan&);

/// What became of layers whose width the group does not divide, a line for each width; empty without any.
SLIM_API std::string group_size_text(const RunConfig&, const RunPlan&);

/// What the algorithms of an output, and its key/value cache, want to know of a block's activations.
SLIM_API void observe(const OutputPlan&, const BlockPlan&, StatisticSet&);

/// What a run does to need less memory.
struct MemoryMode {
  bool read_ahead = true;  ///< the next block's weights are read while a block is made
  bool spill = false;      ///< activations lie in files
};

/// Memory that a run takes at most, about: that of the block that needs most, in the phase that does. From headers alone.
SLIM_API int64_t peak_bytes(const RunConfig&, const Model&, const std::vector<OutputPlan>&, MemoryMode = {});
/// With every measure, and one sample at a time.
SLIM_API int64_t least_bytes(const RunConfig&, const Model&, const std::vector<OutputPlan>&);
/// The cheapest measures that keep the run within run.max_memory; kOutOfMemory: none does, with the least that would.
SLIM_API Result<MemoryMode> choose_memory_mode(const RunConfig&, const Model&,
                                               const std::vector<OutputPlan>&);

}  // namespace slim
