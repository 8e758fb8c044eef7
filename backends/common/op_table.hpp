#pragma once
#include <ATen/ATen.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "slim/ops.hpp"

/// Every operator of slim/ops.hpp with inputs that reach its corners. A backend's test evaluates the table twice, with reference
/// kernels on the CPU and with its own on its device, and compares.
namespace slim::op_table {

struct Case {
  std::string op, variant;
  /// Largest |difference| over the largest |reference|; 0: the same bits.
  double bound = 0;
  std::function<std::vector<at::Tensor>(at::Device)> run;
};

inline at::Tensor random(at::IntArrayRef shape, uint64_t seed, at::ScalarType type = at::kFloat) {
  at::manual_seed(seed);
  at::Tensor x = at::randn(shape);
  if (x.dim() == 2 && x.size(1) > 3) x.select(1, 3).mul_(17);  // a channel of outliers
  return x.to(type);
}

inline std::vector<at::Tensor> on_cpu(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined()) result.push_back(tensor.cpu());
  }
  return result;
}

inline const char* name_of(at::ScalarType type) {
  return type == at::kFloat ? "fp32" : type == at::kHalf ? "fp16" : type == at::kBFloat16 ? "bf16" : "other";
}

struct UnitCase {
  const char* name;
  int64_t rows, columns;
};

/// Shapes and codes that a weight of 37 x 208 is rounded with.
inline std::vector<std::pair<std::string, ops::Rounding>> roundings(at::ScalarType scale_dtype) {
  constexpr int64_t kOut = 37, kIn = 208;
  const UnitCase units[] = {{"tensor", kOut, kIn}, {"channel", 1, kIn}, {"group of 16", 1, 16}, {"group of 13", 1, 13}, {"block of 16x80", 16, 80}};
  std::vector<std::pair<std::string, ops::Rounding>> all;
  for (const UnitCase& unit : units) {
    for (const int64_t bits : {3, 4, 8}) {
      for (const bool symmetric : {true, false}) {
        all.emplace_back("int" + std::to_string(bits) + (symmetric ? "" : " with zero") + ", " + unit.name,
                         ops::Rounding{unit.rows, unit.columns, bits, false, symmetric, scale_dtype});
      }
    }
    all.emplace_back(std::string("E4M3, ") + unit.name, ops::Rounding{unit.rows, unit.columns, 8, true, true, scale_dtype});
  }
  return all;
}

inline void add_rounding(std::vector<Case>& cases) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor weight = random({37, 208}, 1, type);
    weight[5].zero_();         // a unit without a range
    weight[6].mul_(1e-5);      // subnormal codes and scales
    const at::Tensor importance = random({208}, 2).square();
    for (const auto& [name, rounding] : roundings(type)) {
      const std::string variant = std::string(name_of(type)) + ", " + name;
      const ops::Rounding how = rounding;
      const char* code = how.e4m3 ? "cast_e4m3" : "encode";
      cases.push_back({"choose_params", variant, 0, [=](at::Device device) {
                         const auto p = ops::choose_params(weight.to(device), how);
                         return on_cpu({p.scale, p.zero});
                       }});
      for (const auto arithmetic : {at::kFloat, type}) {
        cases.push_back({code, variant + ", quotients in " + name_of(arithmetic), 0, [=](at::Device device) {
                           const auto p = ops::choose_params(weight.to(device), how);
                           return on_cpu({ops::encode(weight.to(device), p, how, arithmetic)});
                         }});
        if (arithmetic == type) break;
      }
      cases.push_back({"round_units", variant, 0, [=](at::Device device) {
                         const auto r = ops::round_units(weight.to(device), how, {}, at::kFloat);
                         return on_cpu({r.codes, r.scale, r.zero});
                       }});
      cases.push_back({"decode", variant, 0, [=](at::Device device) {
                         const auto r = ops::round_units(weight.to(device), how, {}, at::kFloat);
                         return on_cpu({ops::decode(r.codes, {r.scale, r.zero}, how)});
                       }});
      cases.push_back({"rounding_error", variant, 1e-5, [=](at::Device device) {
                         const auto r = ops::round_units(weight.to(device), how, {}, at::kFloat);
                         const auto error = ops::rounding_error(weight.to(device), r.codes, {r.scale, r.zero}, how);
                         return std::vector<at::Tensor>{at::tensor({error.error}, at::kDouble), at::tensor({error.weight}, at::kDouble)};
                       }});
      for (const double norm : {2.0, 2.4}) {
        // Where two steps are equally good either may win: what counts is the error that the found ranges give.
        cases.push_back({"choose_params", variant + ", searched, norm " + std::to_string(norm).substr(0, 3), 1e-4, [=](at::Device device) {
                           const ops::RangeSearch search{importance.to(device), 0.6, norm, 12, 0};
                           const auto p = ops::choose_params(weight.to(device), how, search);
                           const at::Tensor codes = ops::encode(weight.to(device), p, how, at::kFloat);
                           const at::Tensor error = (ops::decode(codes, p, how).cpu() - weight.to(at::kFloat)).abs().pow(norm);
                           return std::vector<at::Tensor>{error.mul(importance).sum(at::kDouble).view({1})};
                         }});
      }
    }
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    at::Tensor weight = random({4, 64}, 12);
    weight[2][5] = bad;
    for (const ops::Rounding& how : {ops::Rounding{1, 16, 4}, ops::Rounding{1, 64, 4, false, false}, ops::Rounding{4, 64, 8, true}}) {
      cases.push_back({"choose_params", "a weight that is not finite", 0, [=](at::Device device) {
                         return on_cpu({at::isfinite(ops::choose_params(weight.to(device), how).scale)});
                       }});
    }
    cases.push_back({"channel_moments_", "an activation that is not finite", 0, [=](at::Device device) {
                       std::vector<at::Tensor> sums(4);
                       for (at::Tensor& sum : sums) sum = at::zeros({64}, at::device(device).dtype(at::kFloat));
                       ops::channel_moments_(sums[0], sums[1], sums[2], sums[3], weight.to(device));
                       for (at::Tensor& sum : sums) sum = at::isfinite(sum);
                       return on_cpu(sums);
                     }});
  }
  for (int64_t bits = 1; bits <= 8; ++bits) {
    for (const int64_t count : {1, 31, 96}) {
      at::manual_seed(3);
      const int64_t half = int64_t{1} << (bits - 1);
      const at::Tensor codes = at::randint(-half, half, {5, count}, at::kLong).to(at::kChar);
      cases.push_back({"pack_codes", std::to_string(count) + " codes of " + std::to_string(bits) + " bits", 0,
                       [=](at::Device device) { return on_cpu({ops::pack_codes(codes.to(device), bits)}); }});
    }
  }
}

inline at::Tensor gram_of(const at::Tensor& x) { return at::matmul(x.t(), x) / static_cast<double>(x.size(0)); }

inline void add_awq(std::vector<Case>& cases) {
  const int64_t group = 32, features = 544;
  const at::Tensor weight = random({21, features}, 4), x = random({64, features}, 5), scales = random({7, features}, 6).abs().add(0.1);
  const at::Tensor gram = gram_of(x), importance = x.square().mean(0);
  const at::Tensor blocks = gram.view({features / group, group, features / group, group}).diagonal(0, 0, 2).permute({2, 0, 1}).contiguous();
  for (const bool symmetric : {true, false}) {
    for (const int64_t bits : {3, 4, 8}) {
      const ops::Rounding how{1, group, bits, false, symmetric, at::kBFloat16};
      const std::string variant = "int" + std::to_string(bits) + (symmetric ? "" : " with zero");
      cases.push_back({"gram_ranges", variant, 1e-4, [=](at::Device device) {
                         const auto range = ops::gram_ranges(weight.to(device), blocks.to(device), how);
                         // The error that the ranges give; extremes of exactly these values lead to their scales.
                         const at::Tensor ends = at::stack({range.low.cpu(), range.high.cpu()}, -1).view({21, -1});
                         const auto p = ops::choose_params(ends, {1, 2, bits, false, symmetric, at::kBFloat16});
                         const at::Tensor codes = ops::encode(weight, p, how, at::kFloat);
                         const at::Tensor delta = (ops::decode(codes, p, how) - weight).view({21, -1, group}).transpose(0, 1);
                         return std::vector<at::Tensor>{at::bmm(delta, blocks).mul_(delta).sum(-1).sum().view({1})};
                       }});
      for (const int64_t steps : {0, 8}) {
        const ops::RangeSearch search{steps ? importance : at::Tensor(), 0.6, 2, steps, 0};
        cases.push_back({"scale_losses", variant + (steps ? ", searched" : "") + ", gram", 1e-4, [=](at::Device device) {
                           return on_cpu({ops::scale_losses(weight.to(device), scales.to(device), gram.to(device), {}, how, search)});
                         }});
        cases.push_back({"scale_losses", variant + (steps ? ", searched" : "") + ", inputs", 1e-4, [=](at::Device device) {
                           const at::Tensor inputs = x.to(device, at::kBFloat16);
                           return on_cpu({ops::scale_losses(weight.to(device), scales.to(device), {}, inputs, how, search)});
                         }});
      }
    }
  }
}

inline void add_activations(std::vector<Case>& cases) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t tokens : {1, 7, 33, 1500}) {
      for (const int64_t features : {5, 64, 300}) {
        const at::Tensor x = random({tokens, features}, 7, type), start = at::eye(features);
        const std::string variant = std::string(name_of(type)) + ", " + std::to_string(tokens) + " x " + std::to_string(features);
        cases.push_back({"gram_", variant, 1e-5, [=](at::Device device) {
                           at::Tensor sum = start.to(device, at::kFloat, false, true);
                           ops::gram_(sum, x.to(device));
                           ops::gram_(sum, x.to(device).narrow(0, 0, 1));
                           return on_cpu({sum, sum - sum.t()});
                         }});
        cases.push_back({"channel_moments_", variant, 1e-5, [=](at::Device device) {
                           const auto filled = [&](double value) { return at::full({features}, value, at::device(device).dtype(at::kFloat)); };
                           at::Tensor abs = filled(1), square = filled(2), min = filled(-0.5), max = filled(0.5);
                           ops::channel_moments_(abs, square, min, max, x.to(device));
                           return on_cpu({abs, square, min, max});
                         }});
      }
    }
  }
}

inline void add_sweeps(std::vector<Case>& cases) {
  struct Pattern {
    int64_t keep, of;
  };
  for (const int64_t columns : {1, 30, 64}) {
    for (const Pattern pattern : {Pattern{0, 0}, {2, 4}, {4, 8}, {1, 3}, {5, 40}}) {
      for (const int coded : {0, 1, 2}) {  // pruned only; symmetric; with zero points
        if (coded == 0 && pattern.of == 0) continue;
        const at::Tensor weight = random({45, columns}, 8);
        const at::Tensor factor = random({columns, columns}, 9).mul_(0.1).triu(1).add_(at::eye(columns));
        const at::Tensor group = at::arange(columns, at::kInt).div(16, "floor").to(at::kInt);
        const at::Tensor scale = random({45, 4}, 10).abs().add_(0.05), zero = random({45, 4}, 11).round();
        const std::string variant = std::to_string(columns) + " columns, " + std::to_string(pattern.keep) + ":" + std::to_string(pattern.of) +
                                    (coded == 0 ? ", pruned" : coded == 1 ? ", rounded" : ", rounded with zero");
        cases.push_back({"column_sweep_", variant, 1e-5, [=](at::Device device) {
                           at::Tensor w = weight.clone().to(device), errors = at::zeros_like(w), codes = at::zeros(w.sizes(), w.options().dtype(at::kChar));
                           const auto given = [&](bool yes, const at::Tensor& x) { return yes ? std::optional(x.to(device)) : std::nullopt; };
                           ops::column_sweep_(w, errors, codes, factor.to(device), given(coded > 0, scale), given(coded > 1, zero),
                                              given(coded > 0, group), -8, 7, pattern.keep, pattern.of);
                           return on_cpu({w, errors, codes});
                         }});
      }
    }
  }
}

inline std::vector<Case> table() {
  std::vector<Case> cases;
  add_rounding(cases);
  add_awq(cases);
  add_activations(cases);
  add_sweeps(cases);
  return cases;
}

/// The largest difference as Case::bound means it; infinity for another shape or type.
inline double difference(const std::vector<at::Tensor>& expected, const std::vector<at::Tensor>& found) {
  double worst = 0;
  if (expected.size() != found.size()) return INFINITY;
  for (size_t i = 0; i < expected.size(); ++i) {
    const at::Tensor &a = expected[i], &b = found[i];
    if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return INFINITY;
    if (a.numel() == 0 || at::equal(a.view({-1}).view(at::kByte), b.contiguous().view({-1}).view(at::kByte))) continue;
    const at::Tensor reference = a.to(at::kDouble);
    const double size = std::max(reference.abs().max().item<double>(), 1e-30);
    const double error = (b.to(at::kDouble) - reference).abs().max().item<double>() / size;
    worst = error >= 0 ? std::max(worst, error) : INFINITY;
  }
  return worst;
}

}  // namespace slim::op_table
