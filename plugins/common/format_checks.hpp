#pragma once
/// What the tests of formats share: a checkpoint in memory, generated layers, round trips, damage.
#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "slim/format.hpp"
#include "slim/quant.hpp"

namespace slim::formats::checks {

struct InMemory final : TensorReader {
  const std::map<std::string, TensorSpec>& tensors() const override { return specs; }
  Result<at::Tensor> read(std::string_view name) const override { return values.find(name)->second.clone(); }
  void put(const std::string& name, const at::Tensor& value) {
    specs[name] = {name, *from_scalar_type(value.scalar_type()), value.sizes().vec()};
    values[name] = value;
  }
  void erase(const std::string& name) {
    REQUIRE(specs.erase(name) == 1);
    values.erase(name);
  }
  std::map<std::string, TensorSpec> specs;
  TensorMap values;
};

inline Layer layer(int64_t out, int64_t in, std::string name = "model.layers.0.mlp.up_proj") {
  Layer layer;
  layer.name = std::move(name);
  layer.out = out;
  layer.in = in;
  return layer;
}

/// Integer weights in groups, or with group 0 a scale per channel.
inline Scheme weight_only(int bits, int64_t group, bool symmetric) {
  QuantArgs args;
  args.bits = bits;
  args.granularity = group > 0 ? Granularity::kGroup : Granularity::kChannel;
  if (group > 0) args.group_size = group;
  args.symmetric = symmetric;
  return {"weights of " + std::to_string(bits) + " bits", args, {}, {}};
}

/// Random weights, rounded; the first row is zero and the second positive, whose zero point is the least.
inline Solved solve(const Layer& layer, const Scheme& scheme, at::ScalarType scale_dtype) {
  at::manual_seed(static_cast<uint64_t>(layer.out * 1000 + layer.in));
  at::Tensor w = at::randn({layer.out, layer.in});
  if (layer.out > 2) {
    w[0].zero_();
    w[1].abs_();
  }
  const auto params = quant::choose_params(w, *scheme.weight, scale_dtype);
  REQUIRE(params.ok());
  Solved solved;
  solved.weight =
      Quantized{*scheme.weight, quant::encode(w, *params, *scheme.weight), params->scale, params->zero, {}};
  if (scheme.input && !scheme.input->dynamic) {
    solved.input_scale = at::full({1}, 0.5, scale_dtype);
    if (!scheme.input->symmetric) solved.input_zero = at::full({1}, -3, at::kChar);
  }
  return solved;
}

inline InMemory stored(const Format& format, const Layer& layer, const Scheme& scheme, const Solved& solved) {
  const auto tensors = format.encode(layer, scheme, solved, at::kBFloat16);
  REQUIRE_MESSAGE(tensors.ok(), tensors.status().message());
  InMemory reader;
  for (const auto& [name, value] : *tensors) reader.put(name, value);
  return reader;
}
inline InMemory stored(const Format& format, const Layer& layer, const Scheme& scheme) {
  return stored(format, layer, scheme, solve(layer, scheme, format.scale_dtype(scheme, at::kBFloat16)));
}

/// quantization_config of a model of one block that has these layers, and `floats` besides.
inline std::string config_of(const Format& format, const std::map<std::string, Scheme>& schemes,
                             const std::vector<std::string>& floats = {},
                             std::vector<std::string> ignore = {}, bool scattered_groups = false) {
  ModelPlan plan;
  plan.blocks.emplace_back();
  std::vector<std::string> names = floats;
  for (const auto& [name, scheme] : schemes) names.push_back(name);
  for (const std::string& name : names) plan.blocks[0].layers.push_back(layer(8, 8, name));
  OutputModel model;
  model.plan = &plan;
  model.schemes = schemes;
  model.ignore = std::move(ignore);
  model.scattered_groups = scattered_groups;
  const auto config = format.quantization_config(model);
  REQUIRE_MESSAGE(config.ok(), config.status().message());
  return *config;
}

inline bool same(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  return !a.defined() ||
         (a.scalar_type() == b.scalar_type() && at::equal(a.to(at::kFloat), b.to(at::kFloat)));
}

/// encode() gives exactly the tensors of layout(); reading finds the layer with its scheme, and decoding its result.
inline void check_round_trip(const Format& format, const Layer& layer, const Scheme& scheme,
                             const Solved& solved) {
  const InMemory reader = stored(format, layer, scheme, solved);
  const auto layout = format.layout(layer, scheme, at::kBFloat16);
  REQUIRE_MESSAGE(layout.ok(), layout.status().message());
  CHECK(layout->size() == reader.specs.size());
  for (const TensorSpec& spec : *layout) {
    REQUIRE(reader.specs.contains(spec.name));
    CHECK(reader.specs.at(spec.name).dtype == spec.dtype);
    CHECK((reader.specs.at(spec.name).shape == spec.shape));
  }
  const std::string config = config_of(format, {{layer.name, scheme}});
  CHECK(format.recognises(config, {}));
  const auto layers = format.stored_layers(reader, config);
  REQUIRE_MESSAGE(layers.ok(), layers.status().message());
  REQUIRE(layers->size() == 1);
  CHECK((layers->front().scheme.weight == scheme.weight));
  CHECK((layers->front().scheme.input == scheme.input));
  CHECK(layers->front().out == layer.out);
  CHECK(layers->front().in == layer.in);
  const auto decoded = format.decode(layers->front(), reader);
  REQUIRE_MESSAGE(decoded.ok(), decoded.status().message());
  const auto& before = std::get<Quantized>(solved.weight);
  const auto& after = std::get<Quantized>(decoded->weight);
  CHECK(same(before.codes, after.codes));
  CHECK(same(before.scale, after.scale));
  CHECK(same(before.zero, after.zero));
  CHECK(same(before.group_index, after.group_index));
  CHECK(same(solved.input_scale, decoded->input_scale));
  CHECK(same(solved.input_zero, decoded->input_zero));
}
inline void check_round_trip(const Format& format, const Layer& layer, const Scheme& scheme) {
  check_round_trip(format, layer, scheme, solve(layer, scheme, format.scale_dtype(scheme, at::kBFloat16)));
}

/// What reading and decoding say: the first error, or "accepted".
inline std::string verdict(const Format& format, const InMemory& reader, const std::string& config) {
  const auto layers = format.stored_layers(reader, config);
  if (!layers.ok()) return layers.status().message();
  for (const StoredLayer& layer : *layers) {
    const auto solved = format.decode(layer, reader);
    if (!solved.ok()) return solved.status().message();
  }
  return "accepted";
}

/// Every tensor of the layer, if it is missing, cut, of another shape or dtype, is named.
inline void check_damage(const Format& format, const Layer& layer, const Scheme& scheme) {
  const InMemory whole = stored(format, layer, scheme);
  const std::string config = config_of(format, {{layer.name, scheme}});
  CHECK(verdict(format, whole, config) == "accepted");
  for (const auto& one_case : whole.specs) {
    const auto& name = std::get<0>(one_case);
    CAPTURE(name);
    const auto told = [&](auto&& damage) {
      InMemory reader = whole;
      damage(reader);
      return verdict(format, reader, config).find(name) != std::string::npos;
    };
    CHECK(told([&](InMemory& r) { r.erase(name); }));
    CHECK(told([&](InMemory& r) { r.put(name, r.values.at(name).unsqueeze(0)); }));
    CHECK(told([&](InMemory& r) { r.put(name, r.values.at(name).to(at::kDouble)); }));
  }
}

}  // namespace slim::formats::checks
