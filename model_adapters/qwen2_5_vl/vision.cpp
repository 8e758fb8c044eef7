#include "vision.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "common/layers/attention.hpp"
#include "common/layers/rotary.hpp"

namespace slim::qwen2_5_vl {
using model::BlockBuilder;
using model::layer_id;
using model::PlanBuilder;

namespace {
constexpr char kAttention[] = "attention";
constexpr char kMlp[] = "mlp";
constexpr double kEpsilon = 1e-6, kTheta = 10000;

/// What only one of the two families has in its config.json.
void read_qwen2(const model::JsonConfig& config, VisionConfig& result) {
  result.gated = false;
  result.hidden = config.integer("embed_dim", 1280);
  result.intermediate =
      static_cast<int64_t>(static_cast<double>(result.hidden) * config.number("mlp_ratio", 4));
  result.out_hidden = config.integer("hidden_size", 3584);
  result.activation = config.text("hidden_act", "quick_gelu");
}

void read_qwen2_5(const model::JsonConfig& config, VisionConfig& result) {
  result.hidden = config.integer("hidden_size", 3584);
  result.intermediate = config.integer("intermediate_size", 3420);
  result.out_hidden = config.integer("out_hidden_size", 3584);
  result.activation = config.text("hidden_act", "silu");
  result.tokens_per_second = config.integer("tokens_per_second", 4, 0);
  result.full_blocks = config.integers("fullatt_block_indexes", std::vector<int64_t>{7, 15, 23, 31});
  const int64_t pixels = config.integer("window_size", 112);
  if (!config.status().ok()) return;
  result.window = pixels / result.merge / result.patch.side;
  if (result.window < 1) {
    config.fail("window_size", "is " + std::to_string(pixels) + ", less than the " +
                                   std::to_string(result.merge * result.patch.side) + " pixels of a token");
  }
}

}  // namespace

VisionConfig read_vision(const model::JsonConfig& config, const std::string& family) {
  VisionConfig result;
  result.depth = config.integer("depth", 32);
  result.heads = std::max<int64_t>(1, config.integer("num_heads", 16));
  result.patch = model::read_patch_shape(config, 14);
  result.merge = config.integer("spatial_merge_size", 2, 1, 64);
  if (family == "qwen2_vl") {
    read_qwen2(config, result);
  } else {
    read_qwen2_5(config, result);
  }
  if (!config.status().ok()) return result;
  if (result.hidden % result.heads != 0 || result.hidden / result.heads % 4 != 0) {
    config.fail(result.gated ? "hidden_size" : "embed_dim",
                "is " + std::to_string(result.hidden) + ", expected num_heads (" +
                    std::to_string(result.heads) + ") times a multiple of 4");
  }
  if (!model::activation(result.activation).ok()) {
    config.fail("hidden_act", "is \"" + result.activation + "\", which slim does not know");
  }
  return result;
}

Windows make_windows(const at::Tensor& grid_thw, int64_t merge, int64_t side) {
  Windows result;
  const auto grid = grid_thw.to(at::kCPU).contiguous();
  int64_t first = 0;  // token of the frame
  const auto add_window = [&](int64_t top, int64_t left, int64_t height, int64_t width) {
    const int64_t bottom = std::min(top + side, height), right = std::min(left + side, width);
    for (int64_t row = top; row < bottom; ++row) {
      for (int64_t column = left; column < right; ++column)
        result.order.push_back(first + row * width + column);
    }
    result.lengths.push_back((bottom - top) * (right - left));
  };
  for (int64_t i = 0; i < grid.size(0); ++i) {
    const int64_t* size = grid.data_ptr<int64_t>() + 3 * i;
    const int64_t height = size[1] / merge, width = size[2] / merge;
    for (int64_t frame = 0; frame < size[0]; ++frame, first += height * width) {
      for (int64_t top = 0; top < height; top += side) {
        for (int64_t left = 0; left < width; left += side) add_window(top, left, height, width);
      }
    }
  }
  return result;
}

VisionTower::VisionTower(VisionConfig config) : config_(std::move(config)) {
  if (const auto function = model::activation(config_.activation); function.ok()) activation_ = *function;
}

// ---- plan -------------------------------------------------------------------------------------------------

void VisionTower::plan(PlanBuilder& plan) const {
  const auto& c = config_;
  plan.global(c.prefix + "patch_embed.proj.weight",
              {c.hidden, c.patch.channels, c.patch.temporal, c.patch.side, c.patch.side});
  for (int64_t i = 0; i < c.depth && plan.ok(); ++i) {
    auto block = plan.block(c.prefix + "blocks." + std::to_string(i), "vision");
    plan_block(block);
  }
  auto merger = plan.block(c.prefix + "merger", "vision");
  plan_merger(merger);
}

void VisionTower::plan_norm(BlockBuilder& block, const std::string& name) const {
  block.param(name + ".weight", {config_.hidden});
  if (!config_.gated) block.param(name + ".bias", {config_.hidden});
}

void VisionTower::plan_block(BlockBuilder& block) const {
  const int64_t hidden = config_.hidden;
  const std::string name = block.plan().name;
  const auto attention = block.region(kAttention);
  const auto input = block.port("attention_input", hidden);
  const auto qkv = block.linear({name + ".attn.qkv", 3 * hidden, hidden, input, Role::kOther, true});
  const auto mixed = block.port("attention_output_input", hidden);
  block.linear({name + ".attn.proj", hidden, hidden, mixed, Role::kAttentionOutput, true});
  plan_norm(block, name + ".norm1");
  block.norm_edge(name + ".norm1", !config_.gated, input, {qkv}, attention);
  plan_mlp(block);
}

void VisionTower::plan_mlp(BlockBuilder& block) const {
  const auto& c = config_;
  const std::string name = block.plan().name, mlp = name + ".mlp.";
  const auto region = block.region(kMlp);
  const auto input = block.port("mlp_input", c.hidden);
  const std::string up_name = mlp + (c.gated ? "up_proj" : "fc1"),
                    down_name = mlp + (c.gated ? "down_proj" : "fc2");
  std::vector<LayerId> readers;
  if (c.gated) {
    readers.push_back(block.linear({mlp + "gate_proj", c.intermediate, c.hidden, input, Role::kGate, true}));
  }
  const auto up = block.linear({up_name, c.intermediate, c.hidden, input, Role::kUp, true});
  readers.push_back(up);
  const auto down_port = block.port("down_input", c.intermediate);
  const auto down = block.linear({down_name, c.hidden, c.intermediate, down_port, Role::kDown, true});
  plan_norm(block, name + ".norm2");
  if (c.gated) {
    block.fuse("gate_up", readers);
    block.linear_edge(up, down_port, {down});
  }
  block.norm_edge(name + ".norm2", !c.gated, input, readers, region);
}

/// The norm comes before merging, so each of its channels feeds several inputs of the first layer: no
/// per-channel scale fits it.
void VisionTower::plan_merger(BlockBuilder& block) const {
  const auto& c = config_;
  const std::string name = block.plan().name;
  const auto input = block.port("merger_input", c.merged());
  block.linear({name + ".mlp.0", c.merged(), c.merged(), input, Role::kUp, true});
  const auto down = block.port("merger_down_input", c.merged());
  block.linear({name + ".mlp.2", c.out_hidden, c.merged(), down, Role::kDown, true});
  plan_norm(block, name + ".ln_q");
}

// ---- forward ----------------------------------------------------------------------------------------------

void VisionTower::begin(const model::MultimodalBatch& batch, Exec& exec, Carry& carry) const {
  const auto& c = config_;
  const int64_t area = c.merge * c.merge;
  auto positions = model::patch_positions(batch.grid_thw, c.merge);
  auto hidden = model::embed_patches(exec, batch.pixels, c.patch, c.prefix + "patch_embed.proj.weight", "");
  if (c.window > 0) {
    const auto windows = make_windows(batch.grid_thw, c.merge, c.window);
    const auto order = model::index_tensor(windows.order);
    const auto patches = (order.unsqueeze(1) * area + at::arange(area, at::kLong)).flatten();
    positions = positions.index_select(1, patches);
    hidden = hidden.index_select(0, patches.to(hidden.device()));
    carry["window_order"] = order;
    carry["window_lengths"] = model::index_tensor(windows.lengths) * area;
  }
  const auto frames = batch.grid_thw.select(1, 0);
  carry["lengths"] = (batch.grid_thw.select(1, 1) * batch.grid_thw.select(1, 2)).repeat_interleave(frames);
  const auto [cos, sin] = model::axial_tables(positions, c.hidden / c.heads, kTheta);
  carry["cos"] = cos.to(exec.device());
  carry["sin"] = sin.to(exec.device());
  carry["hidden"] = hidden;
}

void VisionTower::forward(const BlockPlan& block, Exec& exec, Carry& carry) const {
  if (block.regions.empty()) {
    auto hidden = merge(block, exec, carry.at("hidden"));
    if (const auto order = carry.find("window_order"); order != carry.end()) {
      hidden = at::empty_like(hidden).index_copy(0, order->second.to(hidden.device()), hidden);
      carry.erase(order);
      carry.erase("window_lengths");
    }
    carry["hidden"] = hidden;
    return;
  }
  carry["hidden"] = model::add_regions(*this, block, exec, carry);
}

at::Tensor VisionTower::region(const BlockPlan& block, RegionId id, Exec& exec, const Carry& carry,
                               const at::Tensor& x) const {
  if (id == model::region_id(block, kMlp)) return mlp(block, exec, norm(exec, block.name + ".norm2", x));
  const auto lengths =
      model::sequence_lengths(carry, sees_whole_frames(block) ? "lengths" : "window_lengths");
  return model::vision_attention(block, block.name + ".attn.", exec, carry,
                                 norm(exec, block.name + ".norm1", x), config_.heads, lengths);
}

bool VisionTower::sees_whole_frames(const BlockPlan& block) const {
  const auto& full = config_.full_blocks;
  // Blocks of the tower come first in a plan.
  return config_.window == 0 || std::find(full.begin(), full.end(), block.index) != full.end();
}

at::Tensor VisionTower::norm(Exec& exec, const std::string& name, const at::Tensor& x) const {
  const auto weight = exec.param(name + ".weight");
  if (config_.gated) return model::rms_norm(x, weight, kEpsilon);
  return at::layer_norm(x, {x.size(-1)}, weight, exec.param(name + ".bias"), kEpsilon);
}

at::Tensor VisionTower::mlp(const BlockPlan& block, Exec& exec, const at::Tensor& x) const {
  const auto linear = [&](const char* layer, const at::Tensor& y) {
    return exec.linear(layer_id(block, block.name + ".mlp." + layer), y);
  };
  if (!config_.gated) return linear("fc2", activation_(linear("fc1", x)));
  const at::Tensor wide = activation_(linear("gate_proj", x));
  return linear("down_proj", wide.mul_(linear("up_proj", x)));
}

at::Tensor VisionTower::merge(const BlockPlan& block, Exec& exec, const at::Tensor& x) const {
  const int64_t width = config_.merged();
  const auto merged = norm(exec, block.name + ".ln_q", x).reshape({x.numel() / width, width});
  const auto up = exec.linear(layer_id(block, block.name + ".mlp.0"), merged);
  return exec.linear(layer_id(block, block.name + ".mlp.2"), at::gelu(up));
}

}  // namespace slim::qwen2_5_vl
