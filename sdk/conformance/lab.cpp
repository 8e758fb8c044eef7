#include "lab.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>

namespace slim::conformance {

// ---- exec -------------------------------------------------------------------------------------------------------------

at::Tensor LabExec::linear(LayerId id, const at::Tensor& x) {
  if (!block_ || id < 0 || static_cast<size_t>(id) >= block_->layers.size()) {
    throw ExecError(Status(Code::kInternal,
                           "linear() of layer " + std::to_string(id) + ", which the block does not have"));
  }
  const Layer& layer = block_->layers[static_cast<size_t>(id)];
  if (x.size(-1) != layer.in) {
    throw ExecError(Status(Code::kInternal, layer.name + " got " + std::to_string(x.size(-1)) +
                                                " features, its plan says " + std::to_string(layer.in)));
  }
  const bool replaced = overrides && overrides->count(id);
  const at::Tensor weight = replaced ? overrides->at(id) : tensors_->weight.at(id);
  const auto bias = tensors_->bias.find(id);
  const at::Tensor y =
      at::linear(x, weight.to(x.scalar_type()),
                 bias == tensors_->bias.end() ? at::Tensor() : bias->second.to(x.scalar_type()));
  if (on_linear) on_linear(id, x, y);
  return y;
}

at::Tensor LabExec::tap(PortId port, const at::Tensor& x) {
  if (on_tap) on_tap(port, x);
  return x;
}

void LabExec::region_input(RegionId region, const at::Tensor& x) {
  if (on_region) on_region(region, x);
}

at::Tensor LabExec::param(std::string_view name) {
  if (tensors_) {
    if (const auto found = tensors_->params.find(name); found != tensors_->params.end()) return found->second;
  }
  auto tensor = globals_(std::string(name));
  if (!tensor.ok()) throw ExecError(tensor.status());
  return tensor->to(at::kFloat);
}

at::Tensor LabExec::rows(std::string_view name, const at::Tensor& ids) {
  return param(name).index_select(0, ids);
}

// ---- folding ----------------------------------------------------------------------------------------------------------

at::Tensor columns_of(const ScaleEdge& edge, const at::Tensor& s) {
  if (edge.repeat == 1) return s;
  return s.view({-1, 1, edge.head_dim}).expand({-1, edge.repeat, -1}).reshape({-1});
}

Status fold_edge(const BlockPlan&, const ScaleEdge& edge, const at::Tensor& s, BlockTensors& tensors) {
  for (const LayerId id : edge.consumers) tensors.weight.at(id) = tensors.weight.at(id) * columns_of(edge, s);
  if (edge.fold == Fold::kLinearRows) {
    for (const LayerId id : edge.producers) {
      tensors.weight.at(id) = tensors.weight.at(id) / s.unsqueeze(1);
      if (const auto bias = tensors.bias.find(id); bias != tensors.bias.end())
        bias->second = bias->second / s;
    }
    return {};
  }
  const double offset = edge.fold == Fold::kNormPlusOne ? 1 : 0;
  const auto norm = tensors.params.find(edge.norm_weight);
  if (norm == tensors.params.end())
    return {Code::kInternal, edge.name + ": the block has no parameter " + edge.norm_weight};
  norm->second = (norm->second + offset) / s - offset;
  if (const auto bias = tensors.params.find(edge.norm_bias); bias != tensors.params.end())
    bias->second = bias->second / s;
  return {};
}

// ---- the block --------------------------------------------------------------------------------------------------------

namespace {

constexpr int64_t kFeatures = 64, kHeadDim = 16, kHeads = 4, kKeyHeads = 2, kWide = 128;
enum LabLayers : LayerId { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kGate2, kUp2, kDown2 };
enum LabRegions : RegionId { kAttention, kMlp };
constexpr char kFirstNorm[] = "block.norm1.weight", kSecondNorm[] = "block.norm2.weight";

void add_layer(LabBlock& block, const std::string& name, Role role, int64_t out, PortId port,
               const at::Generator& generator) {
  Layer layer;
  layer.id = static_cast<LayerId>(block.plan.layers.size());
  layer.name = block.plan.name + "." + name;
  layer.role = role;
  layer.input = port;
  layer.weight.tensor = layer.name + ".weight";
  layer.out = out;
  layer.in = block.plan.ports[static_cast<size_t>(port)].features;
  // Uneven rows and columns: where rounding has something to choose.
  const at::Tensor rows = at::exp(at::randn({out, 1}, generator) * 0.3),
                   columns = at::exp(at::randn({1, layer.in}, generator) * 0.3);
  const at::Tensor weight = at::randn({out, layer.in}, generator) * rows * columns * 0.1;
  block.tensors.weight[layer.id] = weight.to(at::kBFloat16).to(at::kFloat);
  block.plan.layers.push_back(std::move(layer));
}

ScaleEdge norm_edge(const char* norm, PortId port, std::vector<LayerId> consumers, RegionId region) {
  ScaleEdge edge;
  edge.port = port;
  edge.norm_weight = norm;
  edge.consumers = std::move(consumers);
  edge.region = region;
  edge.name = std::string(norm) + " -> its readers";
  return edge;
}

ScaleEdge row_edge(LayerId producer, PortId port, LayerId consumer, int64_t repeat) {
  ScaleEdge edge;
  edge.port = port;
  edge.fold = Fold::kLinearRows;
  edge.producers = {producer};
  edge.consumers = {consumer};
  edge.repeat = repeat;
  edge.head_dim = kHeadDim;
  edge.name = producer == kValue ? "v -> o" : "up -> down";
  return edge;
}

void add_attention(LabBlock& block, const at::Generator& generator) {
  block.plan.ports = {{0, "attention_input", kFeatures}, {1, "output_input", kHeads * kHeadDim}};
  add_layer(block, "q_proj", Role::kQuery, kHeads * kHeadDim, 0, generator);
  add_layer(block, "k_proj", Role::kKey, kKeyHeads * kHeadDim, 0, generator);
  add_layer(block, "v_proj", Role::kValue, kKeyHeads * kHeadDim, 0, generator);
  add_layer(block, "o_proj", Role::kAttentionOutput, kFeatures, 1, generator);
  block.plan.fused = {{"qkv", {kQuery, kKey, kValue}}};
  block.plan.edges = {norm_edge(kFirstNorm, 0, {kQuery, kKey, kValue}, kAttention),
                      row_edge(kValue, 1, kOutput, kHeads / kKeyHeads)};
}

void add_mlp(LabBlock& block, bool experts, const at::Generator& generator) {
  auto& plan = block.plan;
  plan.ports.push_back({2, "mlp_input", kFeatures});
  if (!experts) {
    plan.ports.push_back({3, "down_input", kWide});
    add_layer(block, "gate_proj", Role::kGate, kWide, 2, generator);
    add_layer(block, "up_proj", Role::kUp, kWide, 2, generator);
    add_layer(block, "down_proj", Role::kDown, kFeatures, 3, generator);
    plan.fused.push_back({"gate_up", {kGate, kUp}});
    plan.edges.push_back(norm_edge(kSecondNorm, 2, {kGate, kUp}, kMlp));
    plan.edges.push_back(row_edge(kUp, 3, kDown, 1));
    return;
  }
  ExpertSet set;
  for (int32_t expert = 0; expert < 2; ++expert) {
    const std::string name = "experts." + std::to_string(expert) + ".";
    const auto input = static_cast<PortId>(plan.ports.size());
    plan.ports.push_back({input, name + "input", kFeatures, 2});
    plan.ports.push_back({input + 1, name + "down_input", kWide});
    const auto first = static_cast<LayerId>(plan.layers.size());
    add_layer(block, name + "gate_proj", Role::kGate, kWide, input, generator);
    add_layer(block, name + "up_proj", Role::kUp, kWide, input, generator);
    add_layer(block, name + "down_proj", Role::kDown, kFeatures, input + 1, generator);
    for (LayerId id = first; id < first + 3; ++id) plan.layers[static_cast<size_t>(id)].expert = expert;
    plan.fused.push_back({name + "gate_up", {first, first + 1}});
    set.experts.push_back({first, first + 1, first + 2});
  }
  set.top_k = 1;
  plan.moe = set;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight) {
  return x * at::rsqrt(x.square().mean(-1, true) + 1e-6) * weight;
}

}  // namespace

LabBlock LabBlock::make(uint64_t seed, bool experts, int64_t index) {
  const at::Generator generator = at::detail::createCPUGenerator(seed * 1000 + static_cast<uint64_t>(index));
  LabBlock block;
  block.plan.index = static_cast<int32_t>(index);
  block.plan.name = "block";
  block.plan.stage = "language";
  block.plan.params = {kFirstNorm, kSecondNorm};
  block.plan.regions = {{kAttention, "attention"}, {kMlp, "mlp"}};
  add_attention(block, generator);
  add_mlp(block, experts, generator);
  for (const std::string& name : block.plan.params) {
    block.tensors.params[name] = at::rand({kFeatures}, generator).add(0.5).to(at::kBFloat16).to(at::kFloat);
  }
  const at::Tensor uneven =
      at::exp(at::randn({kFeatures}, generator) * 0.8);  // some channels are much larger than others
  for (int64_t i = 0; i < kLabInputs; ++i) {
    block.inputs.push_back(
        (at::randn({kLabTokens, kFeatures}, generator) * uneven).to(at::kBFloat16).to(at::kFloat));
  }
  return block;
}

at::Tensor LabBlock::region(RegionId id, const at::Tensor& x, LabExec& exec) const {
  if (id == kAttention) {
    const at::Tensor input = rms_norm(x, exec.param(kFirstNorm));
    const auto heads = [&](LayerId layer) {
      return exec.linear(layer, input).unflatten(-1, {-1, kHeadDim}).transpose(0, 1).unsqueeze(0);
    };
    const at::Tensor query = heads(kQuery), key = heads(kKey), value = heads(kValue);
    const at::Tensor output =
        at::scaled_dot_product_attention(query, key, value, {}, 0.0, true, std::nullopt, /*enable_gqa=*/true);
    return exec.linear(kOutput, output.squeeze(0).transpose(0, 1).flatten(1));
  }
  const at::Tensor input = rms_norm(x, exec.param(kSecondNorm));
  if (plan.moe) exec.tap(2, input);
  at::Tensor output = exec.linear(kDown, at::silu(exec.linear(kGate, input)) * exec.linear(kUp, input));
  if (!plan.moe) return output;
  const at::Tensor nothing = input.narrow(0, 0, 0);  // the router never chooses the second expert
  exec.linear(kDown2, at::silu(exec.linear(kGate2, nothing)) * exec.linear(kUp2, nothing));
  return output;
}

at::Tensor LabBlock::forward(const at::Tensor& x, LabExec& exec) const {
  at::Tensor hidden = x;
  for (const RegionId id : {kAttention, kMlp}) {
    exec.region_input(id, hidden);
    hidden = hidden + region(id, hidden, exec);
  }
  return hidden;
}

LabExec LabBlock::exec() const {
  LabExec exec([](const std::string& name) -> Result<at::Tensor> {
    return Status(Code::kNotFound, "no tensor " + name);
  });
  exec.set_block(&plan, &tensors);
  return exec;
}

at::Tensor LabBlock::outputs() const {
  LabExec exec = this->exec();
  std::vector<at::Tensor> parts;
  for (const at::Tensor& x : inputs)
    parts.push_back(forward(x, exec) - x);  // what the block adds: the rest cannot move
  return at::cat(parts);
}

Result<Scheme> bench_scheme(const std::string& name, int64_t group) {
  SLIM_ASSIGN(const Scheme scheme, scheme_from_name(name));
  const bool groups = scheme.weight && scheme.weight->granularity == Granularity::kGroup;
  return groups ? scheme_from_name(name, group) : Result<Scheme>(scheme);
}

}  // namespace slim::conformance
