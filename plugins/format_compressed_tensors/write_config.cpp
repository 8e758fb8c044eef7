#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "common/name_patterns.hpp"
#include "config.h"

namespace slim::compressed_tensors {
namespace {

using Json = nlohmann::ordered_json;

Status unsupported(const Scheme& scheme, const std::string& why) {
  return {Code::kUnsupported, "compressed-tensors cannot store scheme " + scheme.name + ": " + why};
}

Json args_json(const QuantArgs& args) {
  const bool grouped = args.granularity == Granularity::kGroup,
             block = args.granularity == Granularity::kBlock;
  Json json;
  json["num_bits"] = args.bits;
  json["type"] = args.type == NumberType::kInt ? "int" : "float";
  json["symmetric"] = args.symmetric;
  json["strategy"] = strategy_name(args.granularity);
  json["group_size"] = grouped ? Json(args.group_size) : Json(nullptr);
  json["dynamic"] = args.dynamic;
  json["actorder"] = nullptr;
  json["block_structure"] = block ? Json{args.block_rows, args.block_columns} : Json(nullptr);
  json["observer"] = args.dynamic ? Json(nullptr) : Json("memoryless_minmax");
  json["observer_kwargs"] = Json::object();
  json["scale_dtype"] = nullptr;
  json["zp_dtype"] = args.symmetric ? Json(nullptr) : Json("torch.int8");
  return json;
}

struct Group {
  const Scheme* scheme = nullptr;
  Storage storage = Storage::kPacked;
  std::vector<std::string> layers;
};

/// Layers by how they are stored; those that are only pruned are a group too.
Result<std::vector<Group>> groups_of(const std::map<std::string, Scheme>& schemes) {
  std::vector<Group> groups;
  for (const auto& [name, scheme] : schemes) {
    auto group = std::find_if(groups.begin(), groups.end(), [&scheme = scheme](const Group& g) {
      return g.scheme->weight == scheme.weight && g.scheme->input == scheme.input;
    });
    if (group == groups.end()) {
      SLIM_ASSIGN(const Storage storage, storage_of(scheme));
      group = groups.insert(group, Group{&scheme, storage, {}});
    }
    group->layers.push_back(name);
  }
  return groups;
}

/// "re:" patterns that cover the layers of one group, and none of another.
std::vector<std::string> targets_of(const Group& group, const std::vector<Group>& groups) {
  std::vector<std::string> others;
  for (const Group& other : groups) {
    if (&other != &group) others.insert(others.end(), other.layers.begin(), other.layers.end());
  }
  std::vector<std::string> targets = formats::patterns_of(group.layers, others);
  for (std::string& target : targets) target = "re:" + target;
  return targets;
}

Json group_json(const Group& group, std::vector<std::string> targets) {
  Json json;
  json["targets"] = std::move(targets);
  json["format"] = storage_name(group.storage);
  json["weights"] = args_json(*group.scheme->weight);
  json["input_activations"] = group.scheme->input ? args_json(*group.scheme->input) : Json(nullptr);
  json["output_activations"] = nullptr;
  return json;
}

/// FP8 keys and values with one scale each.
Json cache_json() {
  QuantArgs args;
  args.type = NumberType::kFloat;
  args.bits = 8;
  args.granularity = Granularity::kTensor;
  return args_json(args);
}

}  // namespace

std::string_view strategy_name(Granularity granularity) {
  switch (granularity) {
    case Granularity::kTensor:
      return "tensor";
    case Granularity::kChannel:
      return "channel";
    case Granularity::kGroup:
      return "group";
    case Granularity::kBlock:
      return "block";
    case Granularity::kToken:
      return "token";
  }
  return "";
}

std::string_view storage_name(Storage storage) {
  switch (storage) {
    case Storage::kPacked:
      return "pack-quantized";
    case Storage::kInt:
      return "int-quantized";
    case Storage::kFloat:
      return "float-quantized";
    case Storage::kDense:
      return "dense";
  }
  return "";
}

Result<Storage> storage_of(const Scheme& scheme) {
  if (!scheme.weight) {
    if (scheme.sparsity && !scheme.input) return Storage::kDense;
    return unsupported(scheme, "it quantizes no weight");
  }
  const QuantArgs& weight = *scheme.weight;
  const bool whole =
      weight.granularity == Granularity::kTensor || weight.granularity == Granularity::kChannel;
  if (weight.type == NumberType::kFloat) {
    if (!whole && weight.granularity != Granularity::kBlock)
      return unsupported(scheme, "FP8 weights have scales per tensor, channel or block");
    return Storage::kFloat;
  }
  if (!scheme.input) {
    if (weight.granularity == Granularity::kChannel || weight.granularity == Granularity::kGroup)
      return Storage::kPacked;
    return unsupported(scheme, "packed integer weights have scales per channel or group");
  }
  if (weight.bits != 8 || !weight.symmetric || !whole) {
    return unsupported(
        scheme, "with quantized activations, integer weights are 8-bit and symmetric, per channel or tensor");
  }
  return Storage::kInt;
}

Result<std::string> write_config(const OutputModel& model) {
  SLIM_ASSIGN(const std::vector<Group> groups, groups_of(model.schemes));
  std::vector<const Group*> quantized;
  std::vector<std::string> ignore = model.ignore;
  for (const Group& group : groups) {
    if (group.storage != Storage::kDense) {
      quantized.push_back(&group);
    } else if (groups.size() > 1) {
      const auto pruned = targets_of(group, groups);
      ignore.insert(ignore.end(), pruned.begin(), pruned.end());
    }
  }
  if (quantized.empty() && !model.kv_cache) return std::string();

  Json config;
  const bool one_storage = std::all_of(quantized.begin(), quantized.end(),
                                       [&](auto* g) { return g->storage == quantized[0]->storage; });
  const Storage first = quantized.empty() ? Storage::kDense : quantized[0]->storage;
  config["quant_method"] = "compressed-tensors";
  config["format"] = one_storage ? storage_name(first) : "mixed-precision";
  config["quantization_status"] = "compressed";
  config["config_groups"] = Json::object();
  for (size_t i = 0; i < quantized.size(); ++i) {
    const auto targets =
        quantized.size() == 1 ? std::vector<std::string>{"Linear"} : targets_of(*quantized[i], groups);
    config["config_groups"]["group_" + std::to_string(i)] = group_json(*quantized[i], targets);
  }
  config["ignore"] = ignore;
  config["kv_cache_scheme"] = model.kv_cache ? cache_json() : Json(nullptr);
  config["global_compression_ratio"] = nullptr;
  config["sparsity_config"] = Json::object();
  config["transform_config"] = Json::object();
  config["version"] = "0.19.0";
  return config.dump();
}

}  // namespace slim::compressed_tensors
