#include "engines/engine.h"

#include <algorithm>
#include <array>

#include "engines/engine_rules.h"
#include "util/nearest.h"
#include "util/strict_json.h"

namespace slim {
namespace {

struct Engine {
  const char* name;
  const char* version;  ///< that the rules were found in
  void (*check)(const ServedCheckpoint&, int64_t devices, engines::ProblemList&);
};

constexpr std::array<Engine, 4> kEngines = {{
    {"lmdeploy", "LMDeploy of August 2026", engines::check_lmdeploy},
    {"transformers", "transformers 5.17", engines::check_transformers},
    {"vllm", "vLLM 0.32", engines::check_vllm},
    {"vllm-ascend", "vLLM-Ascend of August 2026", engines::check_vllm_ascend},
}};

/// True if the checkpoint's own words say "desc_act".
bool says_desc_act(const nlohmann::ordered_json& config) {
  const auto quantization = config.find("quantization_config");
  if (quantization == config.end() || !quantization->is_object()) return false;
  const auto found = quantization->find("desc_act");
  return found != quantization->end() && found->is_boolean() && found->get<bool>();
}

}  // namespace

void read_heads(const std::string& config_json, ServedCheckpoint& served) {
  const auto config = parse_strict_json(config_json);
  if (!config.ok()) return;
  const auto text = config->find("text_config");
  const auto& language = text != config->end() && text->is_object() ? *text : *config;
  const auto number = [&](const char* key, int64_t fallback) {
    const auto found = language.find(key);
    return found != language.end() && found->is_number_integer() ? found->get<int64_t>() : fallback;
  };
  served.heads = number("num_attention_heads", 0);
  served.key_value_heads = number("num_key_value_heads", served.heads);
}

Result<ServedCheckpoint> served_checkpoint(const Model& model) {
  ServedCheckpoint served;
  served.plan = &model.plan;
  served.format_id = model.weights->format_id();
  served.dtype = model.weights->dtype();
  for (const BlockPlan& block : model.plan.blocks) {
    for (const Layer& layer : block.layers) {
      if (const StoredLayer* stored = model.weights->stored(layer.name))
        served.schemes[layer.name] = stored->scheme;
    }
  }
  const std::string& config_json = model.weights->checkpoint().config_json();
  SLIM_ASSIGN(const auto config, parse_strict_json(config_json));
  served.desc_act = says_desc_act(config);
  read_heads(config_json, served);
  return served;
}

Result<std::vector<std::string>> engine_problems(const ServedCheckpoint& served, const std::string& name,
                                                 int64_t devices) {
  for (const Engine& engine : kEngines) {
    if (name != engine.name) continue;
    engines::ProblemList problems(engine.version);
    engine.check(served, devices, problems);
    return problems.lines();
  }
  std::string known;
  std::vector<std::string> names;
  for (const Engine& engine : kEngines) {
    names.emplace_back(engine.name);
    known += (known.empty() ? "" : ", ") + names.back();
  }
  return Status(Code::kInvalidArgument, "no rules of engine '" + name + "' are known" +
                                            did_you_mean(name, names) + " (there are: " + known + ")");
}

}  // namespace slim
