#include "vision.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "common/layers/attention.hpp"
#include "common/layers/rotary.hpp"

namespace slim::qwen3vl {
using model::BlockBuilder;
using model::layer_id;
using model::PlanBuilder;

namespace {
constexpr char kPatchWeight[] = "patch_embed.proj.weight";
constexpr char kPatchBias[] = "patch_embed.proj.bias";
constexpr char kPositions[] = "pos_embed.weight";
constexpr char kMerger[] = "merger";
constexpr char kAttention[] = "attention";
constexpr char kMlp[] = "mlp";
constexpr double kEpsilon = 1e-6;

std::string block_name(const VisionConfig& config, int64_t layer) {
  return config.prefix + "blocks." + std::to_string(layer);
}
std::string deepstack_name(const VisionConfig& config, int64_t merger) {
  return config.prefix + "deepstack_merger_list." + std::to_string(merger);
}

at::Tensor layer_norm(Exec& exec, const std::string& name, const at::Tensor& x) {
  return at::layer_norm(x, {x.size(-1)}, exec.param(name + ".weight"), exec.param(name + ".bias"), kEpsilon);
}
}  // namespace

VisionConfig read_vision(const model::JsonConfig& config) {
  VisionConfig result;
  result.depth = config.integer("depth", 27);
  result.hidden = config.integer("hidden_size", 1152);
  result.intermediate = config.integer("intermediate_size", 4304);
  result.heads = std::max<int64_t>(1, config.integer("num_heads", 16));
  result.out_hidden = config.integer("out_hidden_size", 3584);
  result.patch = model::read_patch_shape(config, 16);
  result.merge = config.integer("spatial_merge_size", 2, 1, 64);
  result.positions = config.integer("num_position_embeddings", 2304);
  result.side = static_cast<int64_t>(std::sqrt(static_cast<double>(result.positions)));
  result.theta = config.child("rope_parameters").number("rope_theta", 10000.0);
  result.deepstack = config.integers("deepstack_visual_indexes", std::vector<int64_t>{8, 16, 24});
  result.activation = config.text("hidden_act", "gelu_pytorch_tanh");
  if (!config.status().ok()) return result;
  if (result.hidden % result.heads != 0 || result.hidden / result.heads % 4 != 0) {
    config.fail("hidden_size", "is " + std::to_string(result.hidden) + ", expected num_heads (" +
                                   std::to_string(result.heads) + ") times a multiple of 4");
  }
  auto sorted = result.deepstack;
  std::sort(sorted.begin(), sorted.end());
  const bool distinct = std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
  if (!distinct || (!sorted.empty() && (sorted.front() < 0 || sorted.back() >= result.depth))) {
    config.fail("deepstack_visual_indexes",
                "has to name different blocks from 0 to " + std::to_string(result.depth - 1));
  }
  if (!model::activation(result.activation).ok()) {
    config.fail("hidden_act", "is \"" + result.activation + "\", which slim does not know");
  }
  return result;
}

VisionTower::VisionTower(VisionConfig config) : config_(std::move(config)) {
  if (const auto function = model::activation(config_.activation); function.ok()) activation_ = *function;
}

// ---- plan -------------------------------------------------------------------------------------------------

void VisionTower::plan(PlanBuilder& plan) const {
  const auto& c = config_;
  plan.global(c.prefix + kPatchWeight,
              {c.hidden, c.patch.channels, c.patch.temporal, c.patch.side, c.patch.side});
  plan.global(c.prefix + kPatchBias, {c.hidden});
  plan.global(c.prefix + kPositions, {c.positions, c.hidden});
  for (int64_t i = 0; i < c.depth && plan.ok(); ++i) {
    auto block = plan.block(block_name(c, i), "vision");
    plan_block(block);
    const auto feeds = std::find(c.deepstack.begin(), c.deepstack.end(), i);
    if (feeds != c.deepstack.end()) plan_merger(block, deepstack_name(c, feeds - c.deepstack.begin()), true);
  }
  auto merger = plan.block(c.prefix + kMerger, "vision");
  plan_merger(merger, c.prefix + kMerger, false);
}

void VisionTower::plan_block(BlockBuilder& block) const {
  const auto& c = config_;
  const std::string name = block.plan().name;
  const auto attention = block.region(kAttention), mlp = block.region(kMlp);
  const auto input = block.port("attention_input", c.hidden);
  const auto qkv = block.linear({name + ".attn.qkv", 3 * c.hidden, c.hidden, input, Role::kOther, true});
  const auto mixed = block.port("attention_output_input", c.hidden);
  block.linear({name + ".attn.proj", c.hidden, c.hidden, mixed, Role::kAttentionOutput, true});
  const auto mlp_input = block.port("mlp_input", c.hidden);
  const auto up =
      block.linear({name + ".mlp.linear_fc1", c.intermediate, c.hidden, mlp_input, Role::kUp, true});
  const auto down = block.port("down_input", c.intermediate);
  block.linear({name + ".mlp.linear_fc2", c.hidden, c.intermediate, down, Role::kDown, true});
  for (const char* norm : {".norm1", ".norm2"}) {
    block.param(name + norm + ".weight", {c.hidden});
    block.param(name + norm + ".bias", {c.hidden});
  }
  block.norm_edge(name + ".norm1", true, input, {qkv}, attention);
  block.norm_edge(name + ".norm2", true, mlp_input, {up}, mlp);
}

void VisionTower::plan_merger(BlockBuilder& block, const std::string& name, bool norm_merged) const {
  const auto& c = config_;
  const std::string prefix = norm_merged ? "deepstack_" : "merger_";
  const auto input = block.port(prefix + "input", c.merged());
  const auto up = block.linear({name + ".linear_fc1", c.merged(), c.merged(), input, Role::kUp, true});
  const auto down = block.port(prefix + "down_input", c.merged());
  block.linear({name + ".linear_fc2", c.out_hidden, c.merged(), down, Role::kDown, true});
  const int64_t width = norm_merged ? c.merged() : c.hidden;
  block.param(name + ".norm.weight", {width});
  block.param(name + ".norm.bias", {width});
  // A norm before merging feeds every channel to several inputs of the layer: no per-channel scale fits it.
  if (norm_merged) block.norm_edge(name + ".norm", true, input, {up}, -1);
}

// ---- forward ----------------------------------------------------------------------------------------------

void VisionTower::begin(const model::MultimodalBatch& batch, Exec& exec, Carry& carry) const {
  const auto& c = config_;
  const auto positions = model::patch_positions(batch.grid_thw, c.merge);
  const auto patches =
      model::embed_patches(exec, batch.pixels, c.patch, c.prefix + kPatchWeight, c.prefix + kPatchBias);
  carry["hidden"] = patches + position_embedding(batch.grid_thw, positions, exec).to(patches.scalar_type());
  const auto frames = batch.grid_thw.select(1, 0);
  carry["lengths"] = (batch.grid_thw.select(1, 1) * batch.grid_thw.select(1, 2)).repeat_interleave(frames);
  const auto [cos, sin] = model::axial_tables(positions, c.hidden / c.heads, c.theta);
  carry["cos"] = cos.to(exec.device());
  carry["sin"] = sin.to(exec.device());
}

at::Tensor VisionTower::position_embedding(const at::Tensor& grid_thw, const at::Tensor& patch_positions,
                                           Exec& exec) const {
  const auto table = exec.param(config_.prefix + kPositions).to(at::kFloat);
  const auto patches = grid_thw.prod(1);
  at::Tensor tap[2][2], weight[2][2];  // [axis][floor, floor + 1]
  for (int64_t axis = 0; axis < 2; ++axis) {
    // The corners of the image lie on the corners of the table.
    const auto size = grid_thw.select(1, axis + 1).repeat_interleave(patches);
    const auto source = patch_positions[axis].to(at::kFloat) * (config_.side - 1) / (size - 1).clamp_min(1);
    const auto floor = source.floor();
    for (int64_t i = 0; i < 2; ++i) {
      tap[axis][i] = (floor.to(at::kLong) + i).clamp(0, config_.side - 1);
      weight[axis][i] = 1 - (source - floor - static_cast<double>(i)).abs();
    }
  }
  auto sum = at::zeros({patch_positions.size(1), config_.hidden}, table.options());
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      const auto index = (tap[0][row] * config_.side + tap[1][column]).to(table.device());
      const auto share = (weight[0][row] * weight[1][column]).to(table.device());
      sum = sum + table.index_select(0, index) * share.unsqueeze(1);
    }
  }
  return sum;
}

void VisionTower::forward(const BlockPlan& block, Exec& exec, Carry& carry) const {
  if (block.name == config_.prefix + kMerger) {
    carry["hidden"] = merger(block, block.name, false, exec, carry.at("hidden"));
    return;
  }
  const auto hidden = model::add_regions(*this, block, exec, carry);
  carry["hidden"] = hidden;
  for (size_t i = 0; i < config_.deepstack.size(); ++i) {
    if (block.name != block_name(config_, config_.deepstack[i])) continue;
    // Features go to the language layers in the order in which the blocks make them, whatever the order of
    // the list.
    const auto layer = std::count_if(config_.deepstack.begin(), config_.deepstack.end(),
                                     [&](int64_t other) { return other < config_.deepstack[i]; });
    carry[deepstack_key(layer)] =
        merger(block, deepstack_name(config_, static_cast<int64_t>(i)), true, exec, hidden);
  }
}

at::Tensor VisionTower::region(const BlockPlan& block, RegionId id, Exec& exec, const Carry& carry,
                               const at::Tensor& x) const {
  if (id == model::region_id(block, kAttention)) {
    const auto normed = layer_norm(exec, block.name + ".norm1", x);
    return model::vision_attention(block, block.name + ".attn.", exec, carry, normed, config_.heads,
                                   model::sequence_lengths(carry));
  }
  const auto up = exec.linear(layer_id(block, block.name + ".mlp.linear_fc1"),
                              layer_norm(exec, block.name + ".norm2", x));
  return exec.linear(layer_id(block, block.name + ".mlp.linear_fc2"), activation_(up));
}

at::Tensor VisionTower::merger(const BlockPlan& block, const std::string& name, bool norm_merged, Exec& exec,
                               const at::Tensor& x) const {
  const int64_t width = config_.merged();
  const auto merge = [&](const at::Tensor& y) { return y.reshape({y.numel() / width, width}); };
  const auto merged =
      norm_merged ? layer_norm(exec, name + ".norm", merge(x)) : merge(layer_norm(exec, name + ".norm", x));
  const auto up = exec.linear(layer_id(block, name + ".linear_fc1"), merged);
  return exec.linear(layer_id(block, name + ".linear_fc2"), at::gelu(up));
}

std::string deepstack_key(int64_t language_layer) { return "deepstack_" + std::to_string(language_layer); }

}  // namespace slim::qwen3vl
