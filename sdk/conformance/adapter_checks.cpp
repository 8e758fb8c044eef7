// An adapter against a checkpoint: its plan, its forward pass and what the plan says about it.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <set>

#include "check.h"
#include "checkpoint/checkpoint.h"
#include "lab.h"
#include "plugin/guard.h"

namespace slim::conformance {
namespace {

constexpr char kText[] = "A scale is kept for every group of weights, and each group is rounded by itself.";
constexpr double kBound = 1e-4;  // relative, fp32

/// The adapter with a checkpoint open.
struct AdapterBench {
  PluginRegistry registry;
  std::shared_ptr<const Checkpoint> checkpoint;
  Owned<ModelAdapter> adapter;
  ModelPlan plan;
  std::unique_ptr<Processor> processor;
  std::unique_ptr<LabExec> exec;

  Result<at::Tensor> matrix(const Layer& layer) const {
    SLIM_ASSIGN(at::Tensor tensor, layer.weight.index
                                       ? checkpoint->read_entry(layer.weight.tensor, *layer.weight.index)
                                       : checkpoint->read(layer.weight.tensor));
    if (layer.weight.transposed) tensor = tensor.t();
    return tensor.narrow(0, layer.weight.row_begin, layer.out).to(at::kFloat).contiguous();
  }
  Result<BlockTensors> tensors(const BlockPlan& block) const {
    BlockTensors all;
    for (const Layer& layer : block.layers) {
      SLIM_ASSIGN(all.weight[layer.id], matrix(layer));
      if (layer.bias.empty()) continue;
      SLIM_ASSIGN(const at::Tensor bias, checkpoint->read(layer.bias));
      all.bias[layer.id] = bias.to(at::kFloat);
    }
    for (const std::string& name : block.params) {
      SLIM_ASSIGN(const at::Tensor param, checkpoint->read(name));
      all.params[name] = param.to(at::kFloat);
    }
    return all;
  }
  Result<Sample> sample(const std::string& text) const {
    Document document;
    document.text = text;
    document.origin = "the kit's text";
    return processor->encode(document, {});
  }
  Result<Carry> begin(const std::vector<Sample>& samples) {
    exec->set_block(nullptr, nullptr);
    return adapter->begin(samples, *exec);
  }
  /// Calls `visit` for every block with the carry at its entry; the visitor runs the block itself.
  Status walk(Carry carry,
              const std::function<Status(const BlockPlan&, const BlockTensors&, Carry&)>& visit) {
    for (const BlockPlan& block : plan.blocks) {
      exec->set_block(nullptr, nullptr);
      const bool starts =
          block.index > 0 && plan.blocks[static_cast<size_t>(block.index) - 1].stage != block.stage;
      if (starts) SLIM_TRY(adapter->enter(block.stage, *exec, carry));
      SLIM_ASSIGN(const BlockTensors loaded, tensors(block));
      exec->set_block(&block, &loaded);
      SLIM_TRY(visit(block, loaded, carry).in(block.name));
    }
    return {};
  }
};

Result<std::unique_ptr<AdapterBench>> open(const Subject& subject) {
  auto bench = std::make_unique<AdapterBench>();
  SLIM_ASSIGN(bench->checkpoint, Checkpoint::open(subject.model));
  SLIM_ASSIGN(bench->adapter, bench->registry.adapter(subject.info.path));
  SLIM_ASSIGN(bench->plan,
              bench->adapter->plan(bench->checkpoint->config_json(), bench->checkpoint->tensors()));
  SLIM_ASSIGN(bench->processor, bench->adapter->processor(subject.model));
  bench->exec = std::make_unique<LabExec>(
      [checkpoint = bench->checkpoint](const std::string& name) { return checkpoint->read(name); });
  return bench;
}

/// The checks below need a model; all run without gradients, and whatever is thrown is an error.
template <Status (*Body)(const Subject&, AdapterBench&)>
Result<Outcome> with_model(const Subject& subject) {
  if (subject.model.empty()) return skipped("needs a checkpoint: --model DIR");
  const c10::NoGradGuard no_grad;
  return guarded("adapter", [&]() -> Result<Outcome> {
    SLIM_ASSIGN(const auto bench, open(subject));
    SLIM_TRY(Body(subject, *bench));
    return Outcome{};
  });
}

// ---- the plan ---------------------------------------------------------------------------------------------------------

Status check_references(const BlockPlan& block) {
  const auto bad = [&](const std::string& what) { return failure(block.name + ": " + what); };
  const auto is_layer = [&](LayerId id) { return id >= 0 && static_cast<size_t>(id) < block.layers.size(); };
  // Experts read what the router gives them of the port.
  const auto reads = [&](const Layer& layer, PortId port) {
    return layer.input == port || block.ports[static_cast<size_t>(layer.input)].parent == port;
  };
  for (size_t i = 0; i < block.ports.size(); ++i) {
    if (block.ports[i].id != static_cast<PortId>(i)) return bad("ports are not numbered in their order");
  }
  for (size_t i = 0; i < block.layers.size(); ++i) {
    const Layer& layer = block.layers[i];
    if (layer.id != static_cast<LayerId>(i)) return bad("layers are not numbered in their order");
    const bool port = layer.input >= 0 && static_cast<size_t>(layer.input) < block.ports.size();
    if (!port || block.ports[static_cast<size_t>(layer.input)].features != layer.in)
      return bad(layer.name + " reads a port of another width, or none");
  }
  for (const ScaleEdge& edge : block.edges) {
    for (const LayerId id : edge.consumers) {
      if (!is_layer(id) || !reads(block.layers[static_cast<size_t>(id)], edge.port))
        return bad("edge '" + edge.name + "' names a consumer that does not read its port");
    }
    for (const Layer& layer : block.layers) {
      const bool reads = layer.input == edge.port,
                 named = std::count(edge.consumers.begin(), edge.consumers.end(), layer.id) > 0;
      if (reads && !named)
        return bad("edge '" + edge.name + "' leaves out " + layer.name + ", which reads its port");
    }
  }
  return {};
}

Status plan_complete(const Subject&, AdapterBench& bench) {
  std::map<std::string, int> named;
  std::set<std::string> layers;
  for (const std::string& name : bench.plan.globals) ++named[name];
  for (const std::string& name : bench.plan.beside) ++named[name];
  for (const LeftOut& left : bench.plan.left_out) ++named[left.tensor];
  for (size_t i = 0; i < bench.plan.blocks.size(); ++i) {
    const BlockPlan& block = bench.plan.blocks[i];
    if (block.index != static_cast<int32_t>(i)) return failure("blocks are not numbered in their order");
    SLIM_TRY(check_references(block));
    for (const std::string& name : block.params) ++named[name];
    for (const Layer& layer : block.layers) {
      if (!layer.bias.empty()) ++named[layer.bias];
      if (!layer.tied && layers.insert(layer.weight.tensor).second) ++named[layer.weight.tensor];
    }
  }
  for (const auto& [name, spec] : bench.checkpoint->tensors()) {
    if (named[name] != 1)
      return failure("the plan names tensor " + name + " " + std::to_string(named[name]) +
                     " times, expected once");
  }
  for (const auto& [name, count] : named) {
    if (!bench.checkpoint->tensors().count(name))
      return failure("the plan names tensor " + name + ", which the checkpoint does not hold");
  }
  return {};
}

/// A damaged description must be an error that names what is wrong.
Status refuse(AdapterBench& bench, const std::string& config,
              const std::map<std::string, TensorSpec>& tensors, const std::string& name,
              const std::string& damage) {
  const auto plan = guarded("plan", [&] { return bench.adapter->plan(config, tensors); });
  if (plan.ok()) return failure(damage + " is planned as if nothing were wrong");
  if (plan.status().message().find(name) != std::string::npos) return {};
  return failure(damage + " gives '" + plan.status().message() + "', which does not name " + name);
}

Status plan_refuses(const Subject&, AdapterBench& bench) {
  const std::string config = bench.checkpoint->config_json();
  const auto& tensors = bench.checkpoint->tensors();
  const std::string victim = bench.plan.blocks.front().layers.front().weight.tensor;
  for (const char* broken : {"", "{", "[]", "null"}) {
    if (guarded("plan", [&] { return bench.adapter->plan(broken, tensors); }).ok())
      return failure(std::string("config.json '") + broken + "' is planned");
  }
  auto without = tensors, misshapen = tensors, surplus = tensors;
  without.erase(victim);
  SLIM_TRY(refuse(bench, config, without, victim, "a checkpoint without " + victim));
  misshapen[victim].shape.back() += 1;
  SLIM_TRY(refuse(bench, config, misshapen, victim, victim + " of another shape"));
  // Copied beside the model it would be a bias that engines add and slim never saw.
  const std::string unknown = victim.substr(0, victim.rfind('.')) + ".no_such_tensor";
  surplus[unknown] = {unknown, Dtype::kBF16, {3}};
  return refuse(bench, config, surplus, unknown, "a tensor of a block that the architecture does not have");
}

// ---- the forward pass -------------------------------------------------------------------------------------------------

Result<Carry> start(AdapterBench& bench) {
  SLIM_ASSIGN(const Sample first, bench.sample(kText));
  SLIM_ASSIGN(const Sample second, bench.sample("One more."));
  return bench.begin({first, second});
}

Status ports(const Subject&, AdapterBench& bench) {
  SLIM_ASSIGN(const Carry carry, start(bench));
  return bench.walk(carry, [&](const BlockPlan& block, const BlockTensors&, Carry& here) -> Status {
    std::map<PortId, at::Tensor> seen;
    std::set<LayerId> used;
    Status problem;
    bench.exec->on_linear = [&](LayerId id, const at::Tensor& x, const at::Tensor&) {
      const Layer& layer = block.layers[static_cast<size_t>(id)];
      used.insert(id);
      const auto [found, added] = seen.emplace(layer.input, x);
      if (!added && problem.ok() && !same(found->second, x))
        problem = failure(layer.name + " reads another activation than the first layer of its port");
    };
    SLIM_TRY(bench.adapter->forward(block, *bench.exec, here));
    bench.exec->on_linear = nullptr;
    for (const Layer& layer : block.layers) {
      if (layer.expert < 0 && !used.count(layer.id))
        return failure(layer.name + " is never used: its matmul does not go through Exec::linear");
    }
    return problem;
  });
}

/// Inputs and outputs of the layers of one forward pass.
using Trace = std::map<LayerId, std::pair<at::Tensor, at::Tensor>>;

Status compare_traces(const BlockPlan& block, const Region& region, const Trace& whole, const Trace& alone) {
  if (alone.empty()) return failure("region " + region.name + " uses no layer");
  for (const auto& [id, tensors] : alone) {
    const std::string& name = block.layers[static_cast<size_t>(id)].name;
    const auto found = whole.find(id);
    if (found == whole.end())
      return failure("region " + region.name + " uses " + name + ", the whole block does not");
    if (tensors.second.numel() == 0) continue;
    const double error = relative_error(tensors.second, found->second.second);
    if (!(error <= kBound))
      return failure("region " + region.name + " alone gives other values at " + name +
                     ": relative difference " + std::to_string(error));
  }
  return {};
}

Status regions(const Subject&, AdapterBench& bench) {
  SLIM_ASSIGN(const Carry carry, start(bench));
  return bench.walk(carry, [&](const BlockPlan& block, const BlockTensors&, Carry& here) -> Status {
    const Carry before = here;
    std::map<RegionId, at::Tensor> inputs;
    Trace whole, alone;
    bench.exec->on_region = [&](RegionId id, const at::Tensor& x) { inputs[id] = x.clone(); };
    bench.exec->on_linear = [&](LayerId id, const at::Tensor& x, const at::Tensor& y) {
      whole[id] = {x.clone(), y.clone()};
    };
    SLIM_TRY(bench.adapter->forward(block, *bench.exec, here));
    bench.exec->on_region = nullptr;
    bench.exec->on_linear = [&](LayerId id, const at::Tensor& x, const at::Tensor& y) {
      alone[id] = {x.clone(), y.clone()};
    };
    for (const Region& region : block.regions) {
      if (!inputs.count(region.id))
        return failure("forward() does not mark the input of region " + region.name);
      alone.clear();
      SLIM_TRY(
          bench.adapter->forward_region(block, region.id, *bench.exec, before, inputs[region.id]).status());
      SLIM_TRY(compare_traces(block, region, whole, alone));
    }
    bench.exec->on_linear = nullptr;
    return {};
  });
}

Result<at::Tensor> output_of(AdapterBench& bench, const BlockPlan& block, const BlockTensors& tensors,
                             const Carry& carry) {
  Carry here = carry;
  bench.exec->set_block(&block, &tensors);
  SLIM_TRY(bench.adapter->forward(block, *bench.exec, here));
  return block.stage == "head" ? here.at("logits") : here.at("hidden");
}

Status edges(const Subject& subject, AdapterBench& bench) {
  SLIM_ASSIGN(const Carry carry, start(bench));
  const at::Generator generator = at::detail::createCPUGenerator(subject.seed);
  return bench.walk(carry, [&](const BlockPlan& block, const BlockTensors& tensors, Carry& here) -> Status {
    SLIM_ASSIGN(const at::Tensor reference, output_of(bench, block, tensors, here));
    for (const ScaleEdge& edge : block.edges) {
      const int64_t features = block.ports[static_cast<size_t>(edge.port)].features / edge.repeat;
      BlockTensors folded = tensors;
      SLIM_TRY(fold_edge(block, edge, at::rand({features}, generator) + 0.5, folded));
      SLIM_ASSIGN(const at::Tensor output, output_of(bench, block, folded, here));
      if (reference.numel() == 0) continue;
      const double moved = relative_error(output, reference);
      if (!(moved <= kBound))
        return failure("a scale folded at edge '" + edge.name + "' moves the output by " +
                       std::to_string(moved) + " (relative)");
    }
    bench.exec->set_block(&block, &tensors);
    return bench.adapter->forward(block, *bench.exec, here);
  });
}

Status pure_forward(const Subject&, AdapterBench& bench) {
  SLIM_ASSIGN(const Carry carry, start(bench));
  return bench.walk(carry, [&](const BlockPlan& block, const BlockTensors& tensors, Carry& here) -> Status {
    Carry copy;
    for (const auto& [name, tensor] : here) copy[name] = tensor.clone();  // as if it came back from a disk
    SLIM_ASSIGN(const at::Tensor first, output_of(bench, block, tensors, here));
    for (const auto& [name, tensor] : copy) {
      if (!same(here.at(name), tensor))
        return failure("forward() writes into the tensor '" + name +
                       "' of the carry; it must make a new one");
    }
    SLIM_ASSIGN(const at::Tensor second, output_of(bench, block, tensors, copy));
    if (!same(first, second)) return failure("the same carry gives other bits the second time");
    return bench.adapter->forward(block, *bench.exec, here);
  });
}

class Cache final : public KeyValueCache {
 public:
  std::pair<at::Tensor, at::Tensor> extend(int32_t block, int64_t sequence, const at::Tensor& key,
                                           const at::Tensor& value) override {
    auto& [keys, values] = entries_[{block, sequence}];
    keys = keys.defined() ? at::cat({keys, key}) : key;
    values = values.defined() ? at::cat({values, value}) : value;
    return {keys, values};
  }

 private:
  std::map<std::pair<int32_t, int64_t>, std::pair<at::Tensor, at::Tensor>> entries_;
};

/// The carry at the end of the language stage; from its entry on, or from the first block.
Result<Carry> run_language(AdapterBench& bench, Carry carry, bool only_language) {
  bool entered = false;
  for (const BlockPlan& block : bench.plan.blocks) {
    if (block.stage == "head" || (only_language && block.stage != "language")) continue;
    const bool starts =
        block.index > 0 && bench.plan.blocks[static_cast<size_t>(block.index) - 1].stage != block.stage;
    if (starts && (!only_language || entered)) {
      bench.exec->set_block(nullptr, nullptr);
      SLIM_TRY(bench.adapter->enter(block.stage, *bench.exec, carry));
    }
    entered = true;
    SLIM_ASSIGN(const BlockTensors tensors, bench.tensors(block));
    bench.exec->set_block(&block, &tensors);
    SLIM_TRY(bench.adapter->forward(block, *bench.exec, carry));
  }
  bench.exec->set_block(nullptr, nullptr);
  return carry;
}

Status generation(const Subject&, AdapterBench& bench) {
  SLIM_ASSIGN(Sample whole, bench.sample(kText));
  const at::Tensor ids = whole.tensors.at("input_ids").flatten();
  const int64_t tokens = ids.size(0);
  if (tokens < 3) return failure("the text has " + std::to_string(tokens) + " tokens only");
  Sample part = whole;
  part.tensors["input_ids"] = ids.narrow(0, 0, tokens - 1);
  SLIM_ASSIGN(const Carry all, bench.begin({whole}));
  SLIM_ASSIGN(const Carry end, run_language(bench, all, false));
  Cache cache;
  SLIM_ASSIGN(const Carry first, bench.begin({part}));
  bench.exec->keys_and_values = &cache;
  SLIM_ASSIGN(const Carry before, run_language(bench, first, false));
  SLIM_ASSIGN(const Carry step, bench.adapter->next(before, ids.narrow(0, tokens - 1, 1), *bench.exec));
  SLIM_ASSIGN(const Carry after, run_language(bench, step, true));
  bench.exec->keys_and_values = nullptr;
  const at::Tensor expected = end.at("hidden").narrow(0, tokens - 1, 1);
  const double error = relative_error(after.at("hidden"), expected);
  if (!(error <= 1e-3))
    return failure("one more token through next() differs from the whole text at once by " +
                   std::to_string(error) + " (relative)");
  return {};
}

Status processor(const Subject&, AdapterBench& bench) {
  SLIM_ASSIGN(const Sample sample, bench.sample(kText));
  const auto ids = sample.tensors.find("input_ids");
  if (ids == sample.tensors.end() || ids->second.scalar_type() != at::kLong || ids->second.dim() != 1)
    return failure("a sample has no input_ids int64 [tokens]");
  if (sample.text_tokens + sample.image_tokens != ids->second.size(0))
    return failure("a sample of " + std::to_string(ids->second.size(0)) + " tokens counts " +
                   std::to_string(sample.text_tokens + sample.image_tokens));
  Document document;
  document.text = kText;
  SLIM_ASSIGN(const Sample cut, bench.processor->encode(document, {false, 5}));
  if (cut.tensors.at("input_ids").size(0) > 5)
    return failure("max_tokens 5 gave " + std::to_string(cut.tensors.at("input_ids").size(0)) + " tokens");
  SLIM_ASSIGN(const auto tokens, bench.processor->tokenize(kText));
  SLIM_ASSIGN(const std::string text, bench.processor->decode(tokens));
  if (text != kText) return failure("tokens of '" + std::string(kText) + "' come back as '" + text + "'");
  Document empty;
  static_cast<void>(
      guarded("encode", [&] { return bench.processor->encode(empty, {}); }));  // any answer but a crash
  return bench.processor->stop_tokens().empty() ? failure("there is no stop token: answers would never end")
                                                : Status{};
}

}  // namespace

std::vector<Check> adapter_checks() {
  return {
      {"adapter/plan", "the plan names every tensor once and its own parts rightly",
       &with_model<&plan_complete>},
      {"adapter/refuses", "a checkpoint that does not fit is an error that names the tensor",
       &with_model<&plan_refuses>},
      {"adapter/processor", "texts become tokens and come back", &with_model<&processor>},
      {"adapter/ports", "every layer passes Exec::linear, and layers of a port read the same activation",
       &with_model<&ports>},
      {"adapter/regions", "regions alone compute what they compute within the block", &with_model<&regions>},
      {"adapter/edges", "a scale folded at any edge leaves the output as it is", &with_model<&edges>},
      {"adapter/pure", "forward() depends on its carry alone and leaves its tensors alone",
       &with_model<&pure_forward>},
      {"adapter/generation", "token by token gives what the whole text gives", &with_model<&generation>}};
}

}  // namespace slim::conformance
