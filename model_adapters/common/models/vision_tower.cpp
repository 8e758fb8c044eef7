#include "common/models/vision_tower.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "common/layers/attention.hpp"
#include "common/layers/rotary.hpp"
#include "common/models/transformer_plan.hpp"

namespace slim::model {
namespace {

/// A side of a patch: one number, or the same number for every axis.
int64_t read_side(const JsonConfig& config, const char* key, int64_t fallback) {
  const auto sides = config.integers(key, std::vector<int64_t>{fallback});
  const bool same =
      !sides.empty() && std::all_of(sides.begin(), sides.end(), [&](int64_t s) { return s == sides[0]; });
  if (same && sides[0] >= 1 && sides[0] <= 4096) return sides[0];
  config.fail(key, "has to be one number from 1 to 4096, or that number for every axis");
  return fallback;
}

}  // namespace

PatchShape read_patch_shape(const JsonConfig& config, int64_t default_side) {
  return {config.integer("in_channels", 3), read_side(config, "temporal_patch_size", 2),
          read_side(config, "patch_size", default_side)};
}

at::Tensor embed_patches(Exec& exec, const at::Tensor& pixels, const PatchShape& shape,
                         const std::string& weight, const std::string& bias) {
  // As a convolution, though a matrix product would do: transformers' rounding in bf16 is the convolution's.
  const auto cubes = pixels.to(exec.device(), exec.dtype())
                         .reshape({-1, shape.channels, shape.temporal, shape.side, shape.side});
  const std::vector<int64_t> kernel{shape.temporal, shape.side, shape.side};
  const auto shift = bias.empty() ? at::Tensor() : exec.param(bias);
  return at::conv3d(cubes, exec.param(weight), shift, kernel).flatten(1);
}

at::Tensor vision_attention(const BlockPlan& block, const std::string& prefix, Exec& exec, const Carry& carry,
                            const at::Tensor& x, int64_t heads, std::span<const int64_t> lengths) {
  const int64_t head_dim = x.size(-1) / heads;
  const auto qkv = exec.linear(layer_id(block, prefix + "qkv"), x).unflatten(-1, {3, heads, head_dim});
  const auto &cos = carry.at("cos"), &sin = carry.at("sin");
  const auto query = apply_rotary(qkv.select(1, 0), cos, sin), key = apply_rotary(qkv.select(1, 1), cos, sin);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const auto mixed = attend(query, key, qkv.select(1, 2), lengths, scale, {.causal = false});
  return exec.linear(layer_id(block, prefix + "proj"), mixed);
}

}  // namespace slim::model
