#include "op_table.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace slim::op_table {

at::Tensor random(at::IntArrayRef shape, uint64_t seed, at::ScalarType type) {
  at::manual_seed(seed);
  at::Tensor x = at::randn(shape);
  if (x.dim() == 2 && x.size(1) > 3) x.select(1, 3).mul_(17);  // a channel of outliers
  return x.to(type);
}

namespace {

struct UnitCase {
  const char* name;
  int64_t rows, columns;
};

}  // namespace

std::vector<std::pair<std::string, ops::Rounding>> roundings(at::ScalarType scale_dtype) {
  constexpr int64_t kOut = 37, kIn = 208;
  const UnitCase units[] = {{"tensor", kOut, kIn},
                            {"channel", 1, kIn},
                            {"group of 16", 1, 16},
                            {"group of 13", 1, 13},
                            {"block of 16x80", 16, 80}};
  std::vector<std::pair<std::string, ops::Rounding>> all;
  for (const UnitCase& unit : units) {
    for (const int64_t bits : {3, 4, 8}) {
      for (const bool symmetric : {true, false}) {
        all.emplace_back("int" + std::to_string(bits) + (symmetric ? "" : " with zero") + ", " + unit.name,
                         ops::Rounding{unit.rows, unit.columns, bits, false, symmetric, scale_dtype});
      }
    }
    all.emplace_back(std::string("E4M3, ") + unit.name,
                     ops::Rounding{unit.rows, unit.columns, 8, true, true, scale_dtype});
  }
  return all;
}

namespace {

std::vector<at::Tensor> on_cpu(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined()) result.push_back(tensor.cpu());
  }
  return result;
}

const char* name_of(at::ScalarType type) {
  return type == at::kFloat ? "fp32" : type == at::kHalf ? "fp16" : type == at::kBFloat16 ? "bf16" : "other";
}

void add_rounding(uint64_t seed, std::vector<Case>& cases) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor weight = random({37, 208}, seed + 1, type);
    weight[5].zero_();     // a unit without a range
    weight[6].mul_(1e-5);  // subnormal codes and scales
    const at::Tensor importance = random({208}, seed + 2).square();
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
      cases.push_back({"round_units_measured", variant, 0, [=](at::Device device) {
                         const auto r =
                             ops::round_units_measured(weight.to(device), how, {}, at::kFloat).rounded;
                         return on_cpu({r.codes, r.scale, r.zero});
                       }});
      cases.push_back({"round_units_measured", variant + ", the error", 1e-5, [=](at::Device device) {
                         const auto error =
                             ops::round_units_measured(weight.to(device), how, {}, at::kFloat).error;
                         return std::vector<at::Tensor>{at::tensor({error.error}, at::kDouble),
                                                        at::tensor({error.weight}, at::kDouble)};
                       }});
      cases.push_back(
          {"rounding_error", variant, 1e-5, [=](at::Device device) {
             const auto r = ops::round_units(weight.to(device), how, {}, at::kFloat);
             const auto error = ops::rounding_error(weight.to(device), r.codes, {r.scale, r.zero}, how);
             return std::vector<at::Tensor>{at::tensor({error.error}, at::kDouble),
                                            at::tensor({error.weight}, at::kDouble)};
           }});
      for (const double norm : {2.0, 2.4}) {
        // Where two steps are equally good either may win: what counts is the error that the found ranges give.
        cases.push_back({"choose_params", variant + ", searched, norm " + std::to_string(norm).substr(0, 3),
                         1e-4, [=](at::Device device) {
                           const ops::RangeSearch search{importance.to(device), 0.6, norm, 12, 0};
                           const auto p = ops::choose_params(weight.to(device), how, search);
                           const at::Tensor codes = ops::encode(weight.to(device), p, how, at::kFloat);
                           const at::Tensor error =
                               (ops::decode(codes, p, how).cpu() - weight.to(at::kFloat)).abs().pow(norm);
                           return std::vector<at::Tensor>{error.mul(importance).sum(at::kDouble).view({1})};
                         }});
      }
    }
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    at::Tensor weight = random({4, 64}, seed + 12);
    weight[2][5] = bad;
    for (const ops::Rounding& how :
         {ops::Rounding{1, 16, 4}, ops::Rounding{1, 64, 4, false, false}, ops::Rounding{4, 64, 8, true}}) {
      cases.push_back({"choose_params", "a weight that is not finite", 0, [=](at::Device device) {
                         return on_cpu({at::isfinite(ops::choose_params(weight.to(device), how).scale)});
                       }});
    }
    cases.push_back({"channel_moments_", "an activation that is not finite", 0, [=](at::Device device) {
                       std::vector<at::Tensor> sums(4);
                       for (at::Tensor& sum : sums)
                         sum = at::zeros({64}, at::device(device).dtype(at::kFloat));
                       ops::channel_moments_(sums[0], sums[1], sums[2], sums[3], weight.to(device));
                       for (at::Tensor& sum : sums) sum = at::isfinite(sum);
                       return on_cpu(sums);
                     }});
  }
}

at::Tensor random_codes(at::IntArrayRef shape, int64_t bits, uint64_t seed) {
  at::manual_seed(seed);
  const int64_t half = int64_t{1} << (bits - 1);
  return at::randint(-half, half, shape, at::kLong).to(at::kChar);
}

void add_packing(uint64_t seed, std::vector<Case>& cases) {
  for (int64_t bits = 1; bits <= 8; ++bits) {
    for (const int64_t count : {1, 31, 96}) {
      const at::Tensor codes = random_codes({21, count}, bits, seed + 3);
      const std::string variant = std::to_string(count) + " codes of " + std::to_string(bits) + " bits";
      cases.push_back({"pack_codes", variant, 0,
                       [=](at::Device device) { return on_cpu({ops::pack_codes(codes.to(device), bits)}); }});
      cases.push_back({"pack_columns", variant, 0, [=](at::Device device) {
                         return on_cpu({ops::pack_columns(codes.to(device), bits)});
                       }});
    }
  }
  for (const int64_t out : {8, 136, 264}) {
    for (const int64_t count : {1, 64, 83}) {
      const at::Tensor codes = random_codes({out, count}, 4, seed + 13);
      cases.push_back({"pack_awq", std::to_string(out) + " x " + std::to_string(count), 0,
                       [=](at::Device device) { return on_cpu({ops::pack_awq(codes.to(device))}); }});
    }
  }
}

struct Pattern {
  int64_t keep, of;
};
std::string name_of(const Pattern& pattern) {
  return std::to_string(pattern.keep) + ":" + std::to_string(pattern.of);
}

void add_masks(uint64_t seed, std::vector<Case>& cases) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const Pattern& pattern : {Pattern{2, 4}, {1, 2}, {4, 8}, {1, 3}, {5, 40}, {63, 64}, {3, 70}}) {
      for (const int64_t columns : {3, 64, 205}) {
        const at::Tensor weight = random({9, columns}, seed + 14, type),
                         importance = random({columns}, seed + 15).abs();
        weight[1].fill_(-1);  // of equals the earlier are kept
        weight[2].slice(0, 0, 2).fill_(NAN);
        const std::string variant =
            std::string(name_of(type)) + ", " + name_of(pattern) + " of " + std::to_string(columns);
        for (const bool weighted : {false, true}) {
          cases.push_back(
              {"sparsity_mask", variant + (weighted ? ", with importance" : ""), 0, [=](at::Device device) {
                 const at::Tensor channels = weighted ? importance.to(device) : at::Tensor();
                 return on_cpu({ops::sparsity_mask(weight.to(device), channels, pattern.keep, pattern.of)});
               }});
        }
      }
    }
  }
}

std::vector<at::Tensor> tensors_of(const ops::BinCounts& found) {
  return {found.counts, at::tensor({found.min, found.max}, at::kDouble)};
}

void add_histograms(uint64_t seed, std::vector<Case>& cases) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t tokens : {1, 33, 1500}) {
      for (const int64_t features : {5, 64, 300}) {
        for (const int64_t exponent :
             {-3, -9, -20, -100}) {  // wide enough bins, and bins that most values lie beyond
          const at::Tensor x = random({tokens, features}, seed + 16, type);
          const std::string variant = std::string(name_of(type)) + ", " + std::to_string(tokens) + " x " +
                                      std::to_string(features) + ", bins of 2^" + std::to_string(exponent);
          cases.push_back({"histogram", variant, 0, [=](at::Device device) {
                             return tensors_of(ops::histogram(x.to(device), exponent, 2048));
                           }});
        }
      }
    }
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const at::Tensor x = random({40, 70}, seed + 17);
    x[7][69] = bad;
    cases.push_back({"histogram", "a value that is not finite", 0, [=](at::Device device) {
                       std::vector<at::Tensor> found = tensors_of(ops::histogram(x.to(device), -9, 2048));
                       found[1] = at::isfinite(found[1]);
                       return found;
                     }});
  }
}

at::Tensor gram_of(const at::Tensor& x) { return at::matmul(x.t(), x) / static_cast<double>(x.size(0)); }

/// The scales that ranges [rows, groups] lead to: those of extremes of exactly these values.
ops::ScaleZero params_of_ends(const ops::GroupRanges& range, int64_t bits, bool symmetric) {
  const at::Tensor ends = at::stack({range.low.cpu(), range.high.cpu()}, -1).view({range.low.size(0), -1});
  return ops::choose_params(ends, {1, 2, bits, false, symmetric, at::kBFloat16});
}

void add_awq(uint64_t seed, std::vector<Case>& cases) {
  const int64_t group = 32, features = 544;
  const at::Tensor weight = random({21, features}, seed + 4), x = random({64, features}, seed + 5),
                   scales = random({7, features}, seed + 6).abs().add(0.1);
  const at::Tensor gram = gram_of(x), importance = x.square().mean(0);
  const at::Tensor blocks = gram.view({features / group, group, features / group, group})
                                .diagonal(0, 0, 2)
                                .permute({2, 0, 1})
                                .contiguous();
  for (const bool symmetric : {true, false}) {
    for (const int64_t bits : {3, 4, 8}) {
      const ops::Rounding how{1, group, bits, false, symmetric, at::kBFloat16};
      const std::string variant = "int" + std::to_string(bits) + (symmetric ? "" : " with zero");
      for (const bool coupled : {false, true}) {
        const at::Tensor coupling = coupled ? random({21, features}, seed + 12).mul_(0.02) : at::Tensor();
        cases.push_back({"gram_ranges", variant + (coupled ? ", coupled" : ""), 1e-4, [=](at::Device device) {
                           const auto range = ops::gram_ranges(weight.to(device), blocks.to(device),
                                                               coupled ? coupling.to(device) : coupling, how);
                           const ops::ScaleZero p = params_of_ends(range, bits, symmetric);
                           const at::Tensor codes = ops::encode(weight, p, how, at::kFloat);
                           const auto by_group = [&](const at::Tensor& x) {
                             return x.view({21, -1, group}).transpose(0, 1);
                           };
                           const at::Tensor delta = by_group(ops::decode(codes, p, how) - weight);
                           at::Tensor product = at::bmm(delta, blocks);
                           if (coupled) product.add_(by_group(coupling), 2);
                           return std::vector<at::Tensor>{product.mul_(delta).sum().view({1})};
                         }});
      }
      cases.push_back({"scale_losses", variant + ", by group", 1e-4, [=](at::Device device) {
                         return on_cpu({ops::scale_losses(weight.to(device), scales.to(device),
                                                          blocks.to(device), {}, how, {})});
                       }});
      for (const int64_t steps : {0, 8}) {
        const ops::RangeSearch search{steps ? importance : at::Tensor(), 0.6, 2, steps, 0};
        cases.push_back(
            {"scale_losses", variant + (steps ? ", searched" : "") + ", gram", 1e-4, [=](at::Device device) {
               return on_cpu({ops::scale_losses(weight.to(device), scales.to(device), gram.to(device), {},
                                                how, search)});
             }});
        cases.push_back({"scale_losses", variant + (steps ? ", searched" : "") + ", inputs", 1e-4,
                         [=](at::Device device) {
                           const at::Tensor inputs = x.to(device, at::kBFloat16);
                           return on_cpu({ops::scale_losses(weight.to(device), scales.to(device), {}, inputs,
                                                            how, search)});
                         }});
      }
    }
  }
}

void add_activations(uint64_t seed, std::vector<Case>& cases) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t tokens : {1, 7, 33, 1500}) {
      for (const int64_t features : {5, 64, 300}) {
        const at::Tensor x = random({tokens, features}, seed + 7, type), start = at::eye(features);
        const std::string variant =
            std::string(name_of(type)) + ", " + std::to_string(tokens) + " x " + std::to_string(features);
        cases.push_back({"gram_", variant, 1e-5, [=](at::Device device) {
                           at::Tensor sum = start.to(device, at::kFloat, false, true);
                           ops::gram_(sum, x.to(device));
                           ops::gram_(sum, x.to(device).narrow(0, 0, 1));
                           return on_cpu({sum.triu()});
                         }});
        cases.push_back({"channel_moments_", variant, 1e-5, [=](at::Device device) {
                           const auto filled = [&](double value) {
                             return at::full({features}, value, at::device(device).dtype(at::kFloat));
                           };
                           at::Tensor abs = filled(1), square = filled(2), min = filled(-0.5),
                                      max = filled(0.5);
                           ops::channel_moments_(abs, square, min, max, x.to(device));
                           return on_cpu({abs, square, min, max});
                         }});
      }
    }
  }
}

/// Compared by the loss of the sweep that the ranges lead to.
void add_sweep_ranges(uint64_t seed, std::vector<Case>& cases) {
  for (const int64_t columns : {1, 12, 64, 128}) {
    const at::Tensor weight = random({45, columns}, seed + 13);
    const at::Tensor factor = random({columns, columns}, seed + 14).mul_(0.02).triu(1).add_(at::eye(columns));
    for (const bool symmetric : {true, false}) {
      for (const int64_t bits : {2, 4}) {
        const std::string variant = std::to_string(columns) + " columns, int" + std::to_string(bits) +
                                    (symmetric ? "" : " with zero");
        cases.push_back({"sweep_ranges", variant, 5e-3, [=](at::Device device) {
                           const auto range =
                               ops::sweep_ranges(weight.to(device), factor.to(device),
                                                 {1, columns, bits, false, symmetric, at::kBFloat16});
                           const ops::ScaleZero p = params_of_ends(range, bits, symmetric);
                           at::Tensor w = weight.clone(), errors = at::empty_like(w),
                                      codes = at::empty(w.sizes(), at::kChar);
                           ops::column_sweep_(w, errors, codes, factor, p.scale,
                                              symmetric ? std::nullopt : std::optional(p.zero),
                                              at::zeros({columns}, at::kInt), -(1 << (bits - 1)),
                                              (1 << (bits - 1)) - 1, 0, 0);
                           return std::vector<at::Tensor>{errors.square().sum().view({1})};
                         }});
      }
    }
  }
}

void add_sweeps(uint64_t seed, std::vector<Case>& cases) {
  for (const int64_t columns : {1, 30, 64}) {
    for (const Pattern pattern : {Pattern{0, 0}, {2, 4}, {4, 8}, {1, 3}, {5, 40}}) {
      for (const int coded : {0, 1, 2}) {  // pruned only; symmetric; with zero points
        if (coded == 0 && pattern.of == 0) continue;
        const at::Tensor weight = random({45, columns}, seed + 8);
        const at::Tensor factor =
            random({columns, columns}, seed + 9).mul_(0.1).triu(1).add_(at::eye(columns));
        const at::Tensor group = at::arange(columns, at::kInt).div(16, "floor").to(at::kInt);
        const at::Tensor scale = random({45, 4}, seed + 10).abs().add_(0.05),
                         zero = random({45, 4}, seed + 11).round();
        const std::string variant = std::to_string(columns) + " columns, " + name_of(pattern) +
                                    (coded == 0   ? ", pruned"
                                     : coded == 1 ? ", rounded"
                                                  : ", rounded with zero");
        cases.push_back({"column_sweep_", variant, 1e-5, [=](at::Device device) {
                           at::Tensor w = weight.clone().to(device), errors = at::zeros_like(w),
                                      codes = at::zeros(w.sizes(), w.options().dtype(at::kChar));
                           const auto given = [&](bool yes, const at::Tensor& x) {
                             return yes ? std::optional(x.to(device)) : std::nullopt;
                           };
                           ops::column_sweep_(w, errors, codes, factor.to(device), given(coded > 0, scale),
                                              given(coded > 1, zero), given(coded > 0, group), -8, 7,
                                              pattern.keep, pattern.of);
                           return on_cpu({w, errors, codes});
                         }});
      }
    }
  }
}

}  // namespace

std::vector<Case> table(uint64_t seed) {
  std::vector<Case> cases;
  add_rounding(seed, cases);
  add_packing(seed, cases);
  add_masks(seed, cases);
  add_awq(seed, cases);
  add_activations(seed, cases);
  add_histograms(seed, cases);
  add_sweeps(seed, cases);
  add_sweep_ranges(seed, cases);
  return cases;
}

std::vector<std::vector<at::Tensor>> expected(const std::vector<Case>& cases) {
  const bool before = ops::reference_forced();
  ops::force_reference(true);
  std::vector<std::vector<at::Tensor>> results;
  for (const Case& test : cases) results.push_back(test.run(at::kCPU));
  ops::force_reference(before);
  return results;
}

double bound_on(const Case& test, at::Device device, bool has_kernel) {
  constexpr double kOtherOrder = 1e-4;
  return has_kernel || device.is_cpu() ? test.bound : std::max(test.bound, kOtherOrder);
}

double difference(const std::vector<at::Tensor>& expected, const std::vector<at::Tensor>& found) {
  double worst = 0;
  if (expected.size() != found.size()) return INFINITY;
  for (size_t i = 0; i < expected.size(); ++i) {
    const at::Tensor &a = expected[i], &b = found[i];
    if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return INFINITY;
    if (a.numel() == 0 || at::equal(a.view({-1}).view(at::kByte), b.contiguous().view({-1}).view(at::kByte)))
      continue;
    const at::Tensor reference = a.to(at::kDouble);
    const double size = std::max(reference.abs().max().item<double>(), 1e-30);
    const double error = (b.to(at::kDouble) - reference).abs().max().item<double>() / size;
    worst = error >= 0 ? std::max(worst, error) : INFINITY;
  }
  return worst;
}

}  // namespace slim::op_table
