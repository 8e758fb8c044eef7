#pragma once
#include <map>
#include <string>
#include <vector>

#include "model/model.h"

namespace slim {

/// A quantized checkpoint as an engine finds it: one that lies on the disk, or one that a run is about to write.
struct ServedCheckpoint {
  const ModelPlan* plan = nullptr;        ///< must outlive it
  std::map<std::string, Scheme> schemes;  ///< by layer name; every quantized layer
  std::string format_id;                  ///< empty: nothing is quantized
  at::ScalarType dtype = at::kBFloat16;   ///< of what stays in float
  bool desc_act = false;                  ///< GPTQ: engines are told to read g_idx
  int64_t heads = 0,
          key_value_heads = 0;  ///< of the language model's attentions; 0: config.json does not say
};

/// One that lies on the disk; `model` must outlive it.
SLIM_API Result<ServedCheckpoint> served_checkpoint(const Model& model);
/// Reads the numbers of heads from config.json, or its "text_config".
SLIM_API void read_heads(const std::string& config_json, ServedCheckpoint&);

/// Says what keeps an engine from loading or running a checkpoint on `devices` devices with tensor parallelism: formats and schemes that it does not
/// read, layers that it merges but that have different schemes, groups that its shards cut, sizes that its kernels do not take. What is the same
/// of many layers is one line, with the first of them and their count. Empty: nothing that is known.
/// kInvalidArgument: an engine that slim knows no rules of.
SLIM_API Result<std::vector<std::string>> engine_problems(const ServedCheckpoint&, const std::string& engine,
                                                          int64_t devices);

}  // namespace slim
