#pragma once
// For the tests of adapters: a random model in memory, and facts that must hold for every architecture.
#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "slim/abi.h"
#include "slim/adapter.hpp"

namespace slim::model {

/// The layer's [out, in] matrix inside the tensor that holds it: a view.
inline at::Tensor matrix_of(const Layer& layer, at::Tensor weight) {
  if (layer.weight.index) weight = weight.select(0, *layer.weight.index);
  if (layer.weight.transposed) weight = weight.t();
  return weight.narrow(0, layer.weight.row_begin, layer.out);
}

/// Exec over tensors in memory.
class TensorExec final : public Exec {
 public:
  explicit TensorExec(const TensorMap& tensors, at::ScalarType dtype = at::kFloat)
      : tensors_(tensors), dtype_(dtype) {}
  at::Tensor linear(LayerId id, const at::Tensor& x) override {
    const auto& layer = block->layers.at(id);
    REQUIRE(x.size(-1) == layer.in);
    return at::linear(x, matrix(layer), layer.bias.empty() ? at::Tensor() : get(layer.bias));
  }
  at::Tensor tap(PortId, const at::Tensor& x) override { return x; }
  void region_input(RegionId id, const at::Tensor& x) override { regions[id] = x; }
  at::Tensor param(std::string_view name) override { return get(name); }
  at::Tensor rows(std::string_view name, const at::Tensor& ids) override {
    return get(name).index_select(0, ids);
  }
  bool all_experts() const override { return every_expert; }
  KeyValueCache* cache() override { return key_values; }
  at::ScalarType dtype() const override { return dtype_; }
  at::Device device() const override { return at::kCPU; }

  const BlockPlan* block = nullptr;
  KeyValueCache* key_values = nullptr;
  bool every_expert = false;
  std::map<RegionId, at::Tensor> regions;  ///< inputs of the last forward pass

 private:
  at::Tensor get(std::string_view name) const {
    const auto found = tensors_.find(name);
    REQUIRE_MESSAGE(found != tensors_.end(), "no tensor " << name);
    return found->second.to(dtype_);
  }
  at::Tensor matrix(const Layer& layer) const { return matrix_of(layer, get(layer.weight.tensor)); }
  const TensorMap& tensors_;
  at::ScalarType dtype_;
};

class GrowingCache final : public KeyValueCache {
 public:
  std::pair<at::Tensor, at::Tensor> extend(int32_t block, int64_t sequence, const at::Tensor& key,
                                           const at::Tensor& value) override {
    auto& entry = entries_[{block, sequence}];
    entry = entry.first.defined() ? std::pair{at::cat({entry.first, key}), at::cat({entry.second, value})}
                                  : std::pair{key, value};
    return entry;
  }

 private:
  std::map<std::pair<int32_t, int64_t>, std::pair<at::Tensor, at::Tensor>> entries_;
};

/// An adapter with a random checkpoint that fits a config.json.
struct RandomModel {
  ModelAdapter* adapter;
  std::map<std::string, TensorSpec> specs;
  TensorMap tensors;
  ModelPlan plan;
};

/// A checkpoint without a head is planned too: adds the tensor of one that is not the embedding's.
inline void give_head(RandomModel& model, const std::string& config) {
  if (!model.plan.blocks.back().layers.empty()) return;
  const auto embedding = std::find_if(model.specs.begin(), model.specs.end(), [](const auto& entry) {
    return entry.first.ends_with("embed_tokens.weight");
  });
  REQUIRE(embedding != model.specs.end());
  model.specs["lm_head.weight"] = {"lm_head.weight", Dtype::kF32, embedding->second.shape};
  const auto plan = model.adapter->plan(config, model.specs);
  REQUIRE_MESSAGE(plan.ok(), plan.status().message());
  model.plan = *plan;
}

/// Learns which tensors the architecture wants from what plan() says is missing.
inline RandomModel random_model(ModelAdapter* adapter, const std::string& config,
                                std::map<std::string, TensorSpec> specs = {}) {
  RandomModel model{adapter, std::move(specs), {}, {}};
  static const std::regex kMissing("tensor (\\S+) is missing, .* shape \\[(.*)\\]");
  for (int i = 0; i < 10000; ++i) {
    auto plan = adapter->plan(config, model.specs);
    if (plan.ok()) {
      model.plan = *plan;
      break;
    }
    std::smatch match;
    const std::string message = plan.status().message();
    REQUIRE_MESSAGE(std::regex_search(message, match, kMissing), message);
    TensorSpec spec{match[1], Dtype::kF32, {}};
    const std::string shape = match[2];
    static const std::regex kNumber("[0-9]+");
    for (std::sregex_iterator it(shape.begin(), shape.end(), kNumber), end; it != end; ++it)
      spec.shape.push_back(std::stoll(it->str()));
    REQUIRE(model.specs.emplace(spec.name, spec).second);
  }
  give_head(model, config);
  at::manual_seed(1);
  for (const auto& [name, spec] : model.specs) {
    const auto noise = at::randn(spec.shape);
    model.tensors[name] =
        spec.shape.size() == 1 ? 1 + 0.2 * noise : noise / std::sqrt(static_cast<double>(spec.shape.back()));
  }
  return model;
}

inline Sample text_sample(const std::vector<int64_t>& ids) {
  Sample sample;
  sample.origin = "calib.jsonl:1";
  sample.tensors["input_ids"] = at::tensor(ids, at::kLong);
  return sample;
}

inline std::vector<Sample> text_samples() {
  return {text_sample({5, 6, 7, 8, 9}), text_sample({1}), text_sample({60, 3, 3, 12})};
}

/// Token ids of the vision models under test. They merge 2 x 2 patches of 4 x 4 pixels of 2 frames into a token.
constexpr int64_t kImage = 60, kVideo = 61;

/// shapes: heights and widths of images in tokens.
inline Sample image_sample(const std::vector<std::pair<int64_t, int64_t>>& shapes, int64_t seed) {
  at::manual_seed(seed);
  std::vector<int64_t> ids{5, 6 + seed, 7}, grids;
  int64_t patches = 0;
  for (const auto& [height, width] : shapes) {
    ids.insert(ids.end(), height * width, kImage);
    ids.push_back(9);
    grids.insert(grids.end(), {1, 2 * height, 2 * width});
    patches += 4 * height * width;
  }
  Sample sample = text_sample(ids);
  sample.origin = "calib.jsonl:" + std::to_string(seed);
  if (!shapes.empty()) {
    sample.tensors["pixel_values"] = at::randn({patches, 3 * 2 * 4 * 4});
    sample.tensors["image_grid_thw"] = at::tensor(grids, at::kLong).view({-1, 3});
  }
  return sample;
}

/// Two images, none, and one of several windows.
inline std::vector<Sample> image_samples() {
  return {image_sample({{2, 3}, {1, 1}}, 1), image_sample({}, 2), image_sample({{5, 4}}, 3)};
}

/// What plan() says against a configuration; empty where it has nothing against it.
inline std::string plan_error(ModelAdapter* adapter, const std::string& config,
                              const std::map<std::string, TensorSpec>& specs = {}) {
  const auto plan = adapter->plan(config, specs);
  return plan.ok() ? "" : plan.status().message();
}

/// What is said against each configuration names the key that is wrong.
inline void check_errors_name_the_key(ModelAdapter* adapter,
                                      const std::vector<std::pair<std::string, std::string>>& configs) {
  for (const auto& [config, named] : configs) {
    const std::string& key = named;  // doctest's lambdas take no parts of a pair under every compiler
    CHECK_MESSAGE(plan_error(adapter, config).find(key) != std::string::npos, key);
  }
}

/// Runs the blocks from `stage` on ("" all). Before the head all rows ask for logits.
inline Carry run_blocks(const RandomModel& model, TensorExec& exec, Carry carry,
                        const std::string& first_stage) {
  std::string stage;
  bool started = first_stage.empty();
  for (const auto& block : model.plan.blocks) {
    if (!started && block.stage != first_stage) continue;
    if (started && block.stage != stage && !stage.empty())
      REQUIRE(model.adapter->enter(block.stage, exec, carry).ok());
    started = true;
    stage = block.stage;
    exec.block = &block;
    const auto status = model.adapter->forward(block, exec, carry);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  return carry;
}

inline at::Tensor logits(const RandomModel& model, TensorExec& exec, std::span<const Sample> samples) {
  exec.block = &model.plan.blocks[0];
  auto carry = model.adapter->begin(samples, exec);
  REQUIRE_MESSAGE(carry.ok(), carry.status().message());
  return run_blocks(model, exec, *carry, "").at("logits");
}

inline double distance(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return a.numel() ? (a - b).abs().max().item<double>() : 0.0;
}

/// Every tensor is named exactly once, ids are dense and every reference is in range.
inline void check_plan_is_consistent(const RandomModel& model) {
  std::multiset<std::string> named(model.plan.globals.begin(), model.plan.globals.end());
  std::set<std::string> packed;
  for (const auto& block : model.plan.blocks) {
    named.insert(block.params.begin(), block.params.end());
    for (const auto& layer : block.layers) {
      CHECK(&layer == &block.layers[layer.id]);
      CHECK(block.ports.at(layer.input).features == layer.in);
      const auto& shape = model.specs.at(layer.weight.tensor).shape;
      const bool part = layer.weight.index || shape[layer.weight.transposed ? 1 : 0] != layer.out;
      if (!(layer.tied && named.count(layer.weight.tensor)) &&
          !(part && !packed.insert(layer.weight.tensor).second)) {
        named.insert(layer.weight.tensor);
      }
      if (!layer.bias.empty()) named.insert(layer.bias);
    }
  }
  for (const auto& entry : model.specs) CHECK_MESSAGE(named.count(entry.first) == 1, entry.first);
  CHECK(named.size() == model.specs.size());
}

/// 1/s moved from what feeds a port into the layers that read it leaves the logits as they are, for every
/// edge of the plan.
inline void check_edges_keep_the_function(RandomModel model, std::span<const Sample> samples,
                                          double tolerance) {
  TensorExec exec(model.tensors);
  const auto before = logits(model, exec, samples);
  for (const auto& block : model.plan.blocks) {
    for (const auto& edge : block.edges) {
      const auto saved = model.tensors;
      const int64_t features = block.ports[edge.port].features;
      const auto s = at::rand({features / edge.repeat}) * 3.5 + 0.5;
      const auto divide = [&](const std::string& name) {
        auto& tensor = model.tensors.at(name);
        tensor = tensor / s;
      };
      const auto multiply = [&](LayerId id, const at::Tensor& factor) {
        auto& tensor = model.tensors.at(block.layers[id].weight.tensor);
        tensor = tensor.clone();  // keeps `saved` as it is
        matrix_of(block.layers[id], tensor).mul_(factor);
      };
      if (edge.fold == Fold::kNorm) {
        divide(edge.norm_weight);
        if (!edge.norm_bias.empty()) divide(edge.norm_bias);
      }
      for (const LayerId id : edge.producers) {
        multiply(id, 1 / s.unsqueeze(1));
        if (!block.layers[id].bias.empty()) divide(block.layers[id].bias);
      }
      const auto wide =
          edge.repeat == 1 ? s : s.view({-1, edge.head_dim}).repeat_interleave(edge.repeat, 0).flatten();
      for (const LayerId id : edge.consumers) multiply(id, wide);
      CHECK_MESSAGE(distance(before, logits(model, exec, samples)) < tolerance,
                    block.name << ": " << edge.name);
      model.tensors = saved;
    }
  }
}

/// A batch gives the logits of its samples one by one.
inline void check_batch_equals_samples(const RandomModel& model, const std::vector<Sample>& samples,
                                       double tolerance) {
  TensorExec exec(model.tensors);
  std::vector<at::Tensor> alone;
  for (const auto& sample : samples) alone.push_back(logits(model, exec, std::span(&sample, 1)));
  CHECK(distance(at::cat(alone), logits(model, exec, samples)) < tolerance);
}

/// Tokens given one by one after a prompt, with cached keys and values, get the logits of the whole sequence.
inline void check_generation_equals_forward(const RandomModel& model, std::vector<Sample> samples,
                                            int64_t steps, double tolerance) {
  TensorExec exec(model.tensors);
  std::vector<at::Tensor> tails, whole;
  auto prompts = samples;
  for (size_t i = 0; i < samples.size(); ++i) {
    auto& ids = samples[i].tensors.at("input_ids");
    const auto tail = at::arange(3, 3 + steps, at::kLong) + static_cast<int64_t>(i);
    ids = at::cat({ids, tail});
    tails.push_back(tail);
    whole.push_back(logits(model, exec, std::span(&samples[i], 1)).slice(0, -steps));
  }
  GrowingCache cache;
  exec.key_values = &cache;
  auto carry = model.adapter->begin(prompts, exec);
  REQUIRE(carry.ok());
  auto state = run_blocks(model, exec, *carry, "");
  for (int64_t step = 0; step < steps; ++step) {
    auto next = model.adapter->next(state, at::stack(tails).select(1, step), exec);
    REQUIRE(next.ok());
    state = run_blocks(model, exec, *next, "language");
    CHECK(distance(state.at("logits"), at::stack(whole).select(1, step)) < tolerance);
  }
}

/// Every region, run alone on the input it showed, adds up to the block's output in blocks that are sums of
/// their regions.
inline void check_regions_recompose(const RandomModel& model, std::span<const Sample> samples,
                                    double tolerance) {
  TensorExec exec(model.tensors);
  exec.block = &model.plan.blocks[0];
  auto carry = *model.adapter->begin(samples, exec);
  std::string stage = model.plan.blocks[0].stage;
  for (const auto& block : model.plan.blocks) {
    if (block.stage != stage) REQUIRE(model.adapter->enter(block.stage, exec, carry).ok());
    stage = block.stage;
    exec.block = &block;
    exec.regions.clear();
    const Carry before = carry;
    REQUIRE(model.adapter->forward(block, exec, carry).ok());
    CHECK(exec.regions.size() == block.regions.size());
    for (const auto& region : block.regions) {
      const auto& input = exec.regions.at(region.id);
      const auto output = model.adapter->forward_region(block, region.id, exec, before, input);
      REQUIRE(output.ok());
      const auto sum = input + *output;
      const bool last = region.id + 1 == static_cast<RegionId>(block.regions.size());
      // What a block adds beyond its regions (features of another stage) is the carry's.
      if (!last)
        CHECK_MESSAGE(distance(sum, exec.regions.at(region.id + 1)) < tolerance,
                      block.name << " " << region.name);
    }
  }
}

/// What every architecture promises to algorithms and to generation.
inline void check_function_is_kept(const RandomModel& model, const std::vector<Sample>& samples) {
  check_edges_keep_the_function(model, samples, 1e-4);
  check_batch_equals_samples(model, samples, 1e-4);
  check_regions_recompose(model, samples, 1e-5);
  check_generation_equals_forward(model, samples, 3, 1e-4);
}

/// The adapter of the plugin whose objects the test links.
struct PluginAdapter {
  explicit PluginAdapter(const slim_plugin& plugin) : component(plugin.components[0]) {
    slim_error error{};
    adapter = static_cast<ModelAdapter*>(component.create(nullptr, &error));
    REQUIRE(adapter != nullptr);
  }
  ~PluginAdapter() { component.destroy(adapter); }
  PluginAdapter(const PluginAdapter&) = delete;
  PluginAdapter& operator=(const PluginAdapter&) = delete;
  const slim_component& component;
  ModelAdapter* adapter;
};

}  // namespace slim::model
