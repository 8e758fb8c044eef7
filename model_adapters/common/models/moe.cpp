#include "common/models/moe.hpp"

#include <ATen/ATen.h>

#include <algorithm>

namespace slim::model {

MoeConfig read_moe(const JsonConfig& config, int64_t layers, bool default_normalize,
                   const std::optional<MoeLayer>& defaults) {
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max(), kMostExperts = 8192;
  const auto read = [&](const char* key, int64_t MoeLayer::*field, int64_t largest) {
    return config.integer(key, defaults ? std::optional<int64_t>((*defaults).*field) : std::nullopt, 1,
                          largest);
  };
  MoeConfig result;
  result.normalize = config.boolean("norm_topk_prob", default_normalize);
  MoeLayer sparse;
  sparse.experts = read(config.has("num_local_experts") ? "num_local_experts" : "num_experts",
                        &MoeLayer::experts, kMostExperts);
  sparse.top_k = read("num_experts_per_tok", &MoeLayer::top_k, kLargest);
  sparse.intermediate = read("moe_intermediate_size", &MoeLayer::intermediate, kLargest);
  if (config.status().ok() && sparse.top_k > sparse.experts) {
    config.fail("num_experts_per_tok", "is more than num_experts");
  }
  const int64_t step = std::max<int64_t>(1, config.integer("decoder_sparse_step", 1));
  const auto dense = config.integers("mlp_only_layers", std::vector<int64_t>{});
  for (int64_t i = 0; i < layers; ++i) {
    const bool listed = std::find(dense.begin(), dense.end(), i) != dense.end();
    result.layers.push_back(!listed && (i + 1) % step == 0 ? sparse : MoeLayer{});
  }
  return result;
}

Routing route(const at::Tensor& router_logits, int64_t top_k, bool normalize) {
  const auto shares = at::softmax(router_logits, -1, at::kFloat);
  auto [weights, experts] = shares.topk(top_k, -1);
  if (normalize) weights = weights / weights.sum(-1, /*keepdim=*/true);
  return {experts, weights.to(router_logits.scalar_type())};
}

// ---- plan ------------------------------------------------------------------------------------------------

void MoeDecoder::plan_mlp(BlockBuilder& block, int64_t layer, const std::string& norm) const {
  const auto& moe = moe_.layers.at(layer);
  if (moe.experts == 0) return Decoder::plan_mlp(block, layer, norm);
  const std::string prefix = block.plan().name + ".mlp.";
  const auto region = block.region("mlp");
  const auto input = block.port("mlp_input", config().hidden);
  ExpertSet set;
  set.top_k = static_cast<int32_t>(moe.top_k);
  set.router = block.linear({prefix + moe_.router, moe.experts, config().hidden, input, Role::kRouter});
  std::vector<LayerId> readers{set.router};
  const auto add_readers = [&](const std::vector<LayerId>& gated) {
    readers.insert(readers.end(), {gated[0], gated[1]});
  };
  if (!moe_.shared_expert.empty()) {
    add_readers(plan_gated(block, prefix + moe_.shared_expert + ".", moe.shared, input, "shared_down_input"));
  }
  if (!moe_.shared_gate.empty()) {
    readers.push_back(block.linear({prefix + moe_.shared_gate, 1, config().hidden, input, Role::kRouter}));
  }
  const auto pool = block.port("experts_down_input", moe.intermediate);
  block.plan().ports[pool].pooled = true;
  for (int32_t expert = 0; expert < moe.experts; ++expert) {
    const std::string name = "expert " + std::to_string(expert);
    const auto routed = block.port(name + " input", config().hidden);
    block.plan().ports[routed].parent = input;
    set.experts.push_back(plan_expert(block, prefix + "experts." + std::to_string(expert) + ".", expert, moe,
                                      routed, name + " down_input"));
    const LayerId down = set.experts.back()[2];
    block.plan().ports[block.plan().layers[down].input].parent = pool;
    add_readers(set.experts.back());
  }
  block.plan().moe = std::move(set);
  block.norm_edge(norm, false, input, std::move(readers), region);
  block.plan().edges.back().name = "post_attention_layernorm -> router and experts";
}

std::vector<LayerId> MoeDecoder::plan_expert(BlockBuilder& block, const std::string& prefix, int32_t expert,
                                             const MoeLayer& moe, PortId input,
                                             const std::string& down_port) const {
  return plan_gated(block, prefix, moe.intermediate, input, down_port, expert);
}

// ---- forward ---------------------------------------------------------------------------------------------

at::Tensor MoeDecoder::mlp(const BlockPlan& block, Exec& exec, const at::Tensor& x) const {
  if (!block.moe) return Decoder::mlp(block, exec, x);
  const auto mixed = experts(block, exec, x);
  if (moe_.shared_expert.empty()) return mixed;
  const std::string prefix = block.name + ".mlp.";
  const auto shared = gated(block, prefix + moe_.shared_expert + ".", exec, x);
  if (moe_.shared_gate.empty()) return mixed + shared;
  return mixed + at::sigmoid(exec.linear(layer_id(block, prefix + moe_.shared_gate), x)) * shared;
}

at::Tensor MoeDecoder::experts(const BlockPlan& block, Exec& exec, const at::Tensor& x) const {
  const auto logits = exec.linear(block.moe->router, moe_.router_in_float ? x.to(at::kFloat) : x);
  const auto routing = route(logits, block.moe->top_k, moe_.normalize);
  auto sum = at::zeros(x.sizes(), x.options().dtype(at::kFloat));
  for (size_t expert = 0; expert < block.moe->experts.size(); ++expert) {
    const auto hits = routing.experts.eq(static_cast<int64_t>(expert)).nonzero();
    const auto rows = hits.select(1, 0), places = hits.select(1, 1);
    if (rows.size(0) == 0 && !exec.all_experts()) continue;
    const std::string prefix = block.name + ".mlp.experts." + std::to_string(expert) + ".";
    const auto output = exec.all_experts() ? gated(block, prefix, exec, x).index_select(0, rows)
                                           : gated(block, prefix, exec, x.index_select(0, rows));
    const auto share = routing.weights.index({rows, places}).unsqueeze(1);
    sum.index_add_(0, rows, (output * share).to(at::kFloat));
  }
  return sum.to(x.scalar_type());
}

}  // namespace slim::model
