#include "solve/block_context.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "calibrate/spill.h"
#include "plugin/guard.h"
#include "util/device_moves.h"

namespace slim {
namespace {

/// FNV-1a, so that seeds are the same on every platform.
uint64_t hash_name(std::string_view text, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325u ^ seed;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

Status check_scale(const ScaleEdge& edge, const at::Tensor& s, int64_t features) {
  if (s.dim() != 1 || s.size(0) * edge.repeat != features) {
    return {Code::kInternal, edge.name + ": a scale of shape " + shape_string(s.sizes().vec()) +
                                 " does not fit " + std::to_string(features) + " channels read " +
                                 std::to_string(edge.repeat) + " times"};
  }
  if (!(at::isfinite(s) & (s > 0)).all().item<bool>()) {
    return {Code::kNumeric, edge.name + ": the scale holds values that are not positive and finite"};
  }
  return {};
}

}  // namespace

at::Tensor consumer_scale(const ScaleEdge& edge, const at::Tensor& s) {
  if (edge.repeat == 1) return s;
  return s.view({-1, 1, edge.head_dim}).expand({-1, edge.repeat, -1}).reshape({-1});
}

at::Tensor BlockTransform::weight(LayerId id) const {
  return state_.weights.weight.at(id).to(exec_.device(), at::kFloat, false, /*copy=*/true);
}

at::Tensor BlockTransform::norm_weight(const ScaleEdge& edge) const {
  const auto it = state_.weights.params.find(edge.norm_weight);
  return it == state_.weights.params.end() ? at::Tensor()
                                           : it->second.to(exec_.device(), at::kFloat, false, /*copy=*/true);
}

const Scheme* BlockTransform::scheme(LayerId id) const {
  const LayerDecision& decision = run_.layers[state_.plan->index][id];
  return decision.scheme && decision.part == part_ ? &*decision.scheme : nullptr;
}

Result<at::Tensor> BlockTransform::region_output(RegionId region, size_t batch, const Overrides* overrides) {
  const c10::NoGradGuard no_grad;
  exec_.set_block(state_.plan, &state_.weights);
  exec_.set_statistics(nullptr);
  exec_.set_overrides(overrides);
  auto output = guarded(model_.adapter_id + ": " + state_.plan->name, [&] {
    const at::Tensor input = moved(exec_.region_inputs()[region][batch], exec_.device());
    return model_.adapter->forward_region(*state_.plan, region, exec_,
                                          carry_on(carries_[batch], exec_.device()), input);
  });
  Spill::release(carries_[batch]);
  Spill::release({{"input", exec_.region_inputs()[region][batch]}});
  exec_.set_overrides(nullptr);
  return output;
}

Result<double> BlockTransform::loss(RegionId region, const Overrides& overrides) {
  if (!statistics_.keeps(region) || exec_.region_inputs()[region].size() != carries_.size()) {
    return Status(Code::kInternal,
                  "the inputs of region " + std::to_string(region) + " were not kept; ask with keep_inputs");
  }
  auto& references = references_[region];
  double squared = 0, count = 0;
  for (size_t batch = 0; batch < carries_.size(); ++batch) {
    if (references.size() <= batch) {
      SLIM_ASSIGN(at::Tensor reference, region_output(region, batch, nullptr));
      references.push_back(moved(reference, at::kCPU));
    }
    SLIM_ASSIGN(const at::Tensor output, region_output(region, batch, &overrides));
    squared += (output.to(at::kFloat) - moved(references[batch], exec_.device()).to(at::kFloat))
                   .square()
                   .sum()
                   .item<double>();
    count += static_cast<double>(output.numel());
  }
  return count > 0 ? squared / count : 0.0;
}

Result<at::Tensor> BlockTransform::fold(const ScaleEdge& edge, const at::Tensor& scale) {
  const at::Tensor s = moved(scale, exec_.device());
  const int64_t features = state_.plan->ports.at(edge.port).features;
  SLIM_TRY(check_scale(edge, s, features));
  if (const auto begin = std::exchange(before_first_fold_, nullptr)) SLIM_TRY(begin());
  SLIM_ASSIGN(const at::Tensor applied,
              edge.fold == Fold::kLinearRows ? fold_rows(edge, s) : fold_norm(edge, s));
  const at::Tensor columns = consumer_scale(edge, applied);
  for (const LayerId id : edge.consumers) {
    state_.weights.weight[id] = weight(id).mul_(columns);
    state_.changed_layers.insert(id);
    state_.rounded = state_.rounded || stays_in_float(id);
  }
  statistics_.rescale(edge.port, columns);
  folds_.emplace_back(&edge, applied);
  return applied;
}

/// The stored norm weight w' = round(w / s) is what engines will use, so the scale that is really applied is w / w': the fold
/// is then exact whatever the rounding did. A channel whose weight is 0 carries nothing and keeps its consumers as they are.
Result<at::Tensor> BlockTransform::fold_norm(const ScaleEdge& edge, const at::Tensor& s) {
  const double offset = edge.fold == Fold::kNormPlusOne ? 1 : 0;
  at::Tensor& stored = state_.weights.params.at(edge.norm_weight);
  stored = moved(stored, exec_.device());
  const at::Tensor old_gain = stored.to(at::kFloat) + offset;
  const at::Tensor new_stored = (old_gain / s - offset).to(stored.scalar_type());
  const at::Tensor new_gain = new_stored.to(at::kFloat) + offset;
  const at::Tensor dead = (old_gain == 0) | (new_gain == 0);
  const at::Tensor applied = at::where(dead, at::ones_like(s), old_gain / new_gain);
  stored = at::where(dead, stored, new_stored);
  state_.changed_tensors.insert(edge.norm_weight);
  if (!edge.norm_bias.empty()) {
    at::Tensor& bias = state_.weights.params.at(edge.norm_bias);
    bias = (bias.to(exec_.device(), at::kFloat) / applied).to(bias.scalar_type());
    state_.changed_tensors.insert(edge.norm_bias);
    state_.rounded = true;
  }
  return applied;
}

Result<at::Tensor> BlockTransform::fold_rows(const ScaleEdge& edge, const at::Tensor& s) {
  for (const CacheSite& site : state_.plan->caches) {
    const bool cached =
        std::find(edge.producers.begin(), edge.producers.end(), site.value_layer) != edge.producers.end();
    if (cached) statistics_.rescale(site.value, s);
  }
  for (const LayerId id : edge.producers) {
    state_.weights.weight[id] = weight(id).div_(s.unsqueeze(1));
    state_.changed_layers.insert(id);
    state_.rounded = state_.rounded || stays_in_float(id);
    at::Tensor& bias = state_.weights.bias[id];
    if (!bias.defined()) continue;
    bias = (bias.to(exec_.device(), at::kFloat) / s).to(bias.scalar_type());
    state_.changed_tensors.insert(state_.plan->layers[id].bias);
    state_.rounded = true;
  }
  return s;
}

Status BlockTransform::set_weight(LayerId id, const at::Tensor& weight) {
  const Layer& layer = state_.plan->layers.at(id);
  if (weight.sizes() != at::IntArrayRef({layer.out, layer.in})) {
    return {Code::kInternal, layer.name + ": a weight of shape " + shape_string(weight.sizes().vec()) +
                                 " was set; expected " + shape_string({layer.out, layer.in})};
  }
  state_.weights.weight[id] = weight.to(exec_.device(), at::kFloat);
  state_.changed_layers.insert(id);
  function_changed_ = true;
  return {};
}

at::Tensor LayerSolve::weight() const {
  return state_.weights.weight.at(layer_.id).to(device_, at::kFloat, false, /*copy=*/true);
}

at::Tensor LayerSolve::stored_weight() const { return moved(state_.weights.weight.at(layer_.id), device_); }

at::Tensor LayerSolve::bias() const {
  const at::Tensor& bias = state_.weights.bias.at(layer_.id);
  return bias.defined() ? bias.to(device_, at::kFloat, false, /*copy=*/true) : bias;
}

double LayerSolve::fused_abs_max() const {
  const auto abs_max = [&](LayerId id) {
    return moved(state_.weights.weight[id], device_).abs().max().item<double>();
  };
  double largest = abs_max(layer_.id);
  for (const FusedGroup& group : state_.plan->fused) {
    if (std::find(group.layers.begin(), group.layers.end(), layer_.id) == group.layers.end()) continue;
    for (const LayerId id : group.layers) largest = std::max(largest, abs_max(id));
  }
  return largest;
}

uint64_t LayerSolve::seed() const { return hash_name(layer_.name, run_seed_); }

}  // namespace slim
