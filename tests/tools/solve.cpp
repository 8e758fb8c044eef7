// slim_solve PLUGIN SCHEME GROUP_SIZE IN OUT [KEY=VALUE]...: what an algorithm makes of one linear layer.
// IN: a folder whose model.safetensors holds "weight" [out, in] and "x" [tokens, in]. OUT gets "codes", "scale", "decoded" and,
// where there are any, "zero" and "group_index". Scales are stored in the weight's dtype. Prints the algorithm's notes.
#include <ATen/ATen.h>

#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "plugin/registry.h"
#include "report/notes.h"
#include "slim/quant.hpp"
#include "statistics/statistic_set.h"
#include "tensor_files.h"

using namespace slim;

namespace {

class OneLayer final : public LayerContext {
 public:
  OneLayer(const Layer& layer, const Scheme& scheme, at::Tensor weight, const StatisticSet& statistics)
      : layer_(layer), scheme_(scheme), weight_(std::move(weight)), statistics_(statistics) {}
  const Layer& layer() const override { return layer_; }
  const Scheme& scheme() const override { return scheme_; }
  at::Tensor weight() const override { return weight_.to(at::kFloat, false, /*copy=*/true); }
  at::Tensor bias() const override { return {}; }
  at::ScalarType scale_dtype() const override { return weight_.scalar_type(); }
  const Statistic* find(std::string_view id) const override { return statistics_.find(0, id); }
  double fused_abs_max() const override { return weight_.abs().max().item<double>(); }
  TensorMap& port_cache() override { return cache_; }
  uint64_t seed() const override { return 0; }
  RunNotes& notes() override { return notes_; }

 private:
  const Layer& layer_;
  const Scheme& scheme_;
  at::Tensor weight_;
  const StatisticSet& statistics_;
  TensorMap cache_;
  RunNotes notes_;
};

BlockPlan one_layer(const at::Tensor& weight) {
  BlockPlan block;
  block.name = "block";
  block.ports = {{0, "input", weight.size(1)}};
  Layer layer;
  layer.name = "layer";
  layer.out = weight.size(0);
  layer.in = weight.size(1);
  block.layers = {layer};
  return block;
}

TensorMap tensors_of(const Solved& solved) {
  const auto* quantized = std::get_if<Quantized>(&solved.weight);
  if (!quantized) return {{"decoded", std::get<Dense>(solved.weight).weight}};
  TensorMap tensors{
      {"codes", quantized->codes}, {"scale", quantized->scale}, {"decoded", quant::decode(*quantized)}};
  if (quantized->zero.defined()) tensors["zero"] = quantized->zero;
  if (quantized->group_index.defined()) tensors["group_index"] = quantized->group_index;
  return tensors;
}

Status run(const std::string& plugin, const std::string& scheme_name, int64_t group_size,
           const std::string& in, const std::string& out, const Options& raw) {
  PluginRegistry registry;
  SLIM_ASSIGN(const Owned<Algorithm> algorithm, registry.algorithm(plugin));
  SLIM_ASSIGN(const Options options, registry.checked_options(SLIM_ALGORITHM, plugin, raw));
  SLIM_TRY(algorithm->setup(options));
  SLIM_ASSIGN(const Scheme scheme, scheme_from_name(scheme_name, group_size));
  SLIM_TRY(algorithm->accepts(scheme));
  SLIM_ASSIGN(const auto source, Checkpoint::open(in));
  SLIM_ASSIGN(const at::Tensor weight, source->read("weight"));
  SLIM_ASSIGN(const at::Tensor x, source->read("x"));
  const BlockPlan block = one_layer(weight);
  StatisticSet statistics(block, x.size(0));
  algorithm->observe(block, {&scheme}, statistics);
  statistics.update(0, x);
  OneLayer layer(block.layers[0], scheme, weight, statistics);
  SLIM_ASSIGN(const Solved solved, algorithm->solve(layer));
  std::printf("%s", layer.notes().text().c_str());
  return tools::write_tensors(out, tensors_of(solved));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "usage: slim_solve PLUGIN SCHEME GROUP_SIZE IN OUT [KEY=VALUE]...\n");
    return 2;
  }
  Options options;
  for (int i = 6; i < argc; ++i) {
    const std::string_view text = argv[i];
    const size_t equals = text.find('=');
    options[std::string(text.substr(0, equals))] = text.substr(equals + 1);
  }
  return tools::exit_code(run(argv[1], argv[2], std::atoll(argv[3]), argv[4], argv[5], options));
}
