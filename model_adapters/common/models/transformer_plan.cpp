#include "common/models/transformer_plan.hpp"

#include <algorithm>

#include "slim/adapter.hpp"

namespace slim::model {

PortId BlockBuilder::port(const std::string& name, int64_t features) {
  auto& ports = plan().ports;
  Port port;
  port.id = static_cast<PortId>(ports.size());
  port.name = name;
  port.features = features;
  ports.push_back(port);
  return port.id;
}

LayerId BlockBuilder::linear(const LinearSpec& spec) {
  owner_->claim(spec.name + ".weight", {spec.out, spec.in});
  if (spec.bias) owner_->claim(spec.name + ".bias", {spec.out});
  WeightRef weight;
  weight.tensor = spec.name + ".weight";
  return linear(spec, std::move(weight));
}

LayerId BlockBuilder::linear(const LinearSpec& spec, WeightRef weight) {
  Layer layer;
  layer.id = static_cast<LayerId>(plan().layers.size());
  layer.name = spec.name;
  layer.role = spec.role;
  layer.input = spec.input;
  layer.weight = std::move(weight);
  if (spec.bias) layer.bias = spec.name + ".bias";
  layer.out = spec.out;
  layer.in = spec.in;
  layer.expert = spec.expert;
  plan().layers.push_back(layer);
  return layer.id;
}

void BlockBuilder::param(const std::string& tensor, const std::vector<int64_t>& shape) {
  owner_->claim(tensor, shape);
  plan().params.push_back(tensor);
}

RegionId BlockBuilder::region(const std::string& name) {
  auto& regions = plan().regions;
  regions.push_back({static_cast<RegionId>(regions.size()), name});
  return regions.back().id;
}

void BlockBuilder::fuse(const std::string& name, std::vector<LayerId> layers) {
  plan().fused.push_back({name, std::move(layers)});
}

namespace {

/// "q_proj" of "model.layers.3.self_attn.q_proj".
std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

std::string edge_name(const std::string& producer, const BlockPlan& block,
                      const std::vector<LayerId>& consumers) {
  std::string name = last_part(producer) + " -> ";
  for (size_t i = 0; i < consumers.size(); ++i)
    name += (i ? ", " : "") + last_part(block.layers[consumers[i]].name);
  return name;
}

/// Buffers that old versions of transformers stored; engines compute them from config.json.
bool is_rotary_table(const std::string& name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("rotary_emb.cos_cached") ||
         name.ends_with("rotary_emb.sin_cached");
}

/// The names of numbered blocks without their numbers, "model.layers.": what lies there takes part in the function.
std::set<std::string> block_stems(const ModelPlan& plan) {
  std::set<std::string> stems;
  for (const BlockPlan& block : plan.blocks) {
    const size_t last = block.name.find_last_not_of("0123456789");
    if (last != std::string::npos && last + 1 < block.name.size())
      stems.insert(block.name.substr(0, last + 1));
  }
  return stems;
}

/// What names tell of a checkpoint that holds another thing than a model, and what to do; empty without a sign.
std::string cure_for_names(const std::map<std::string, TensorSpec>& tensors) {
  struct Wrapper {
    const char *prefix, *cure;
  };
  constexpr Wrapper kWrappers[] = {
      {"base_model.model.", "as peft wraps models: merge the adapter (merge_and_unload) and save the result"},
      {"module.", "as DistributedDataParallel wraps models: save model.module instead"},
      {"_orig_mod.", "as torch.compile wraps models: save model._orig_mod instead"},
      {"_fsdp_wrapped_module.", "as FSDP wraps models: save its full state dict instead"}};
  for (const auto& [name, spec] : tensors) {
    if (name.find(".lora_A.") != std::string::npos || name.find(".base_layer.") != std::string::npos)
      return "; the checkpoint holds LoRA tensors (" + name +
             "): merge them first (merge_and_unload of peft), then save the model";
  }
  for (const Wrapper& wrapper : kWrappers) {
    const auto first = tensors.lower_bound(wrapper.prefix);
    if (first != tensors.end() && first->first.starts_with(wrapper.prefix))
      return std::string("; names begin with \"") + wrapper.prefix + "\", " + wrapper.cure;
  }
  return "";
}

}  // namespace

void BlockBuilder::norm_edge(const std::string& norm, bool bias, PortId port, std::vector<LayerId> consumers,
                             RegionId region) {
  ScaleEdge edge;
  edge.port = port;
  edge.fold = Fold::kNorm;
  edge.norm_weight = norm + ".weight";
  if (bias) edge.norm_bias = norm + ".bias";
  edge.region = region;
  edge.name = edge_name(norm, plan(), consumers);
  edge.consumers = std::move(consumers);
  plan().edges.push_back(std::move(edge));
}

void BlockBuilder::linear_edge(LayerId producer, PortId port, std::vector<LayerId> consumers, int64_t repeat,
                               int64_t head_dim) {
  ScaleEdge edge;
  edge.port = port;
  edge.fold = Fold::kLinearRows;
  edge.producers = {producer};
  edge.repeat = repeat;
  edge.head_dim = head_dim;
  edge.name = edge_name(plan().layers[producer].name, plan(), consumers);
  edge.consumers = std::move(consumers);
  plan().edges.push_back(std::move(edge));
}

BlockPlan& BlockBuilder::plan() { return owner_->plan_.blocks[index_]; }

PlanBuilder::PlanBuilder(std::string family, const std::map<std::string, TensorSpec>& tensors)
    : tensors_(tensors) {
  plan_.family = std::move(family);
}

BlockBuilder PlanBuilder::block(const std::string& name, const std::string& stage) {
  BlockPlan block;
  block.index = static_cast<int32_t>(plan_.blocks.size());
  block.name = name;
  block.stage = stage;
  plan_.blocks.push_back(std::move(block));
  return BlockBuilder(this, plan_.blocks.size() - 1);
}

void PlanBuilder::global(const std::string& tensor, const std::vector<int64_t>& shape) {
  claim(tensor, shape);
  plan_.globals.push_back(tensor);
}

void PlanBuilder::ignore(std::vector<std::string> patterns) { plan_.default_ignore = std::move(patterns); }

const TensorSpec* PlanBuilder::find(const std::string& tensor) const {
  const auto it = tensors_.find(tensor);
  return it == tensors_.end() ? nullptr : &it->second;
}

void PlanBuilder::claim(const std::string& tensor, const std::vector<int64_t>& shape) {
  if (!ok()) return;
  const TensorSpec* spec = find(tensor);
  const auto broken = [&](const std::string& what) {
    fail(Status(Code::kCorrupt, "tensor " + tensor + what));
  };
  if (!spec)
    return broken(" is missing, config.json says it has shape " + shape_string(shape) +
                  cure_for_names(tensors_));
  if (spec->shape != shape) {
    return broken(" has shape " + shape_string(spec->shape) + ", expected " + shape_string(shape) +
                  " from config.json");
  }
  const bool plain_float =
      spec->dtype == Dtype::kF32 || spec->dtype == Dtype::kBF16 || spec->dtype == Dtype::kF16;
  if (!plain_float) {
    return broken(" is " + std::string(dtype_name(spec->dtype)) +
                  ", expected BF16, F16 or F32: start from the float checkpoint");
  }
  if (!claimed_.insert(tensor).second)
    fail(Status(Code::kInternal, "the plan names tensor " + tensor + " twice"));
}

void PlanBuilder::fail(Status status) {
  if (error_.ok()) error_ = std::move(status);
}

void PlanBuilder::leave_out(const std::string& tensor, const std::string& copy_of) {
  if (!claimed_.insert(tensor).second) return;
  plan_.left_out.push_back({tensor, copy_of});
}

Result<ModelPlan> PlanBuilder::finish() {
  SLIM_TRY(error_);
  const std::set<std::string> stems = block_stems(plan_);
  const auto in_blocks = [&](const std::string& name) {
    return std::any_of(stems.begin(), stems.end(),
                       [&](const std::string& stem) { return name.starts_with(stem); });
  };
  for (const auto& [name, spec] : tensors_) {
    if (claimed_.count(name)) continue;
    if (is_rotary_table(name))
      plan_.left_out.push_back({name, ""});
    else if (in_blocks(name))
      return Status(Code::kUnsupported, "tensor " + name + " " + std::string(dtype_name(spec.dtype)) + " " +
                                            shape_string(spec.shape) + " does not belong to a " +
                                            plan_.family + " model as config.json describes it");
    else
      plan_.beside.push_back(name);
  }
  return std::move(plan_);
}

std::string stored_prefix(const std::map<std::string, TensorSpec>& tensors,
                          const std::vector<std::string>& prefixes, const std::string& name) {
  for (const std::string& prefix : prefixes) {
    if (tensors.contains(prefix + name)) return prefix;
  }
  return prefixes.front();
}

LayerId layer_id(const BlockPlan& block, const std::string& name) {
  for (const auto& layer : block.layers) {
    if (layer.name == name) return layer.id;
  }
  throw ExecError(Status(Code::kInternal, "block " + block.name + " has no layer " + name));
}

RegionId region_id(const BlockPlan& block, const std::string& name) {
  for (const auto& region : block.regions) {
    if (region.name == name) return region.id;
  }
  throw ExecError(Status(Code::kInternal, "block " + block.name + " has no region " + name));
}

}  // namespace slim::model
