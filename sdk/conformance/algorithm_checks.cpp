// What an algorithm must do with a small block, whatever its method.
#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "check.h"
#include "lab.h"
#include "plugin/guard.h"
#include "plugin/options_schema.h"
#include "slim/quant.hpp"
#include "util/nearest.h"

namespace slim::conformance {
namespace {

constexpr int64_t kGroup = 32;  // divides every width of the bench

Result<Owned<Algorithm>> make(const Subject& subject, PluginRegistry& registry) {
  SLIM_ASSIGN(Owned<Algorithm> algorithm, registry.algorithm(subject.info.path));
  SLIM_ASSIGN(const Options options, registry.checked_options(SLIM_ALGORITHM, subject.info.path, {}));
  SLIM_TRY(guarded("setup", [&] { return algorithm->setup(options); }));
  return algorithm;
}

/// The algorithm and its default scheme, ready for work.
struct Ready {
  PluginRegistry registry;
  Owned<Algorithm> algorithm;
  LabJob job;
};

Result<std::unique_ptr<Ready>> ready(const Subject& subject) {
  auto made = std::make_unique<Ready>();
  SLIM_ASSIGN(made->algorithm, make(subject, made->registry));
  SLIM_ASSIGN(made->job.scheme, bench_scheme(std::string(made->algorithm->default_scheme()), kGroup));
  SLIM_TRY(made->algorithm->accepts(made->job.scheme).in("its own default scheme"));
  return made;
}

// ---- results ----------------------------------------------------------------------------------------------------------

Status check_finite(const at::Tensor& tensor, const std::string& what) {
  return at::isfinite(tensor.to(at::kFloat)).all().item<bool>() ? Status{}
                                                                : failure(what + " holds NaN or Inf");
}

std::vector<int64_t> scale_shape(const Layer& layer, const QuantArgs& args) {
  const auto parts = [](int64_t size, int64_t of) { return (size + of - 1) / of; };
  switch (args.granularity) {
    case Granularity::kTensor:
      return {1, 1};
    case Granularity::kGroup:
      return {layer.out, layer.in / args.group_size};
    case Granularity::kBlock:
      return {parts(layer.out, args.block_rows), parts(layer.in, args.block_columns)};
    default:
      return {layer.out, 1};
  }
}

Status check_codes(const at::Tensor& codes, const QuantArgs& args, at::IntArrayRef shape,
                   const std::string& what) {
  if (codes.sizes() != shape)
    return failure(what + " have shape " + shape_string(codes.sizes().vec()) + ", expected " +
                   shape_string(shape.vec()));
  if (args.type == NumberType::kFloat) {
    if (codes.scalar_type() != at::kFloat8_e4m3fn) return failure(what + " are no float8_e4m3fn");
    return check_finite(codes, what);
  }
  if (codes.scalar_type() != at::kChar) return failure(what + " are no int8");
  const int64_t low = codes.min().item<int64_t>(), high = codes.max().item<int64_t>();
  if (low >= args.min_code() && high <= args.max_code()) return {};
  return failure(what + " go from " + std::to_string(low) + " to " + std::to_string(high) + ", " +
                 std::to_string(args.bits) + " bits allow " + std::to_string(args.min_code()) + " to " +
                 std::to_string(args.max_code()));
}

Status check_quantized(const Layer& layer, const Scheme& scheme, const Quantized& result) {
  if (!scheme.weight) return failure("it quantized a weight that the scheme leaves in float");
  const QuantArgs& args = *scheme.weight;
  if (!(result.args == args)) return failure("Quantized::args differ from the scheme's");
  SLIM_TRY(check_codes(result.codes, args, {layer.out, layer.in}, "codes"));
  const std::vector<int64_t> shape = scale_shape(layer, args);
  if (result.scale.sizes() != at::IntArrayRef(shape)) {
    return failure("scales have shape " + shape_string(result.scale.sizes().vec()) + ", expected " +
                   shape_string(shape));
  }
  SLIM_TRY(check_finite(result.scale, "the scale"));
  if (!(result.scale.to(at::kFloat) > 0).all().item<bool>()) return failure("scales are not all positive");
  if (args.symmetric == result.zero.defined()) {
    return failure(args.symmetric ? "a symmetric result has zero points"
                                  : "an asymmetric result has no zero points");
  }
  if (result.zero.defined()) SLIM_TRY(check_codes(result.zero, args, shape, "zero points"));
  if (!result.group_index.defined()) return {};
  const bool valid = result.group_index.scalar_type() == at::kInt &&
                     result.group_index.sizes() == at::IntArrayRef({layer.in}) &&
                     result.group_index.min().item<int64_t>() >= 0 &&
                     result.group_index.max().item<int64_t>() < shape[1];
  return valid ? Status{} : failure("group_index is no int32 [in] of group numbers");
}

Status check_pruned(const at::Tensor& weight, const Sparsity& sparsity) {
  const at::Tensor kept = (weight != 0).unflatten(1, {-1, sparsity.of}).sum(-1);
  if (kept.max().item<int64_t>() <= sparsity.keep) return {};
  return failure("more than " + std::to_string(sparsity.keep) + " of " + std::to_string(sparsity.of) +
                 " weights are kept somewhere");
}

Status check_solved(const Layer& layer, const Scheme& scheme, const Solved& solved) {
  if (const auto* quantized = std::get_if<Quantized>(&solved.weight)) {
    SLIM_TRY(check_quantized(layer, scheme, *quantized));
  } else if (scheme.weight) {
    return failure("the weight came back dense, the scheme quantizes it");
  }
  const at::Tensor weight = dense(solved);
  if (weight.sizes() != at::IntArrayRef({layer.out, layer.in}))
    return failure("the weight has shape " + shape_string(weight.sizes().vec()));
  SLIM_TRY(check_finite(weight, "the weight"));
  if (scheme.sparsity) SLIM_TRY(check_pruned(weight, *scheme.sparsity));
  if (solved.bias.defined()) SLIM_TRY(check_finite(solved.bias, "the bias"));
  const bool is_static = scheme.input && !scheme.input->dynamic;
  if (is_static && !solved.input_scale.defined())
    return failure("the scheme has static input scales, the result has none");
  return solved.input_scale.defined() ? check_finite(solved.input_scale, "the input scale") : Status{};
}

Status check_all(const LabBlock& block, const Scheme& scheme, const LabResult& result) {
  for (const Layer& layer : block.plan.layers)
    SLIM_TRY(check_solved(layer, scheme, result.solved.at(layer.id)).in(layer.name));
  return {};
}

// ---- checks -----------------------------------------------------------------------------------------------------------

Result<Outcome> obeys_scheme(const Subject& subject) {
  PluginRegistry registry;
  std::vector<std::string> served, refused;
  const LabBlock block = LabBlock::make(subject.seed);
  for (const std::string& name : scheme_names()) {
    SLIM_ASSIGN(const auto algorithm, make(subject, registry));
    SLIM_ASSIGN(const Scheme scheme, bench_scheme(name, kGroup));
    if (!guarded("accepts", [&] { return algorithm->accepts(scheme); }).ok()) {
      refused.push_back(name);
      continue;
    }
    LabJob job;
    job.scheme = scheme;
    auto result = work(*algorithm, block, job);
    if (!result.ok()) return result.status().in(name);
    SLIM_TRY(check_all(block, scheme, *result).in(name));
    served.push_back(name);
  }
  if (served.empty()) return failure("it accepts no scheme at all");
  return Outcome{false, "serves " + join(served) + (refused.empty() ? "" : "; refuses " + join(refused))};
}

Status compare(const LabResult& a, const LabResult& b, const std::string& what) {
  for (const auto& [id, solved] : a.solved) {
    if (!same(solved, b.solved.at(id))) return failure("layer " + std::to_string(id) + ": " + what);
  }
  return {};
}

Result<Outcome> same_seed(const Subject& subject) {
  const LabBlock block = LabBlock::make(subject.seed);
  SLIM_ASSIGN(const auto first, ready(subject));
  SLIM_ASSIGN(const LabResult a, work(*first->algorithm, block, first->job));
  static_cast<void>(at::rand({7}));  // what else draws random numbers must not matter
  SLIM_ASSIGN(const auto second, ready(subject));
  SLIM_ASSIGN(const LabResult b, work(*second->algorithm, block, second->job));
  SLIM_TRY(compare(a, b, "the same block and seed gave other bits the second time"));
  return Outcome{};
}

Result<Outcome> solve_order(const Subject& subject) {
  const LabBlock block = LabBlock::make(subject.seed);
  SLIM_ASSIGN(const auto first, ready(subject));
  SLIM_ASSIGN(const LabResult a, work(*first->algorithm, block, first->job));
  SLIM_ASSIGN(const auto second, ready(subject));
  second->job.reverse = true;
  SLIM_ASSIGN(const LabResult b, work(*second->algorithm, block, second->job));
  SLIM_TRY(compare(a, b, "the result depends on the order in which layers are solved"));
  return Outcome{};
}

/// Rounding, which every algorithm is measured against.
class Rounding final : public Algorithm {
 public:
  Status setup(const Options&) override { return {}; }
  std::string_view default_scheme() const override { return "w4a16"; }
  void observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
               Observations& observations) const override {
    for (const Layer& layer : plan.layers)
      observations.want<ChannelMoments>(layer.input, plan.ports[static_cast<size_t>(layer.input)].features);
  }
  Result<Solved> solve(LayerContext& context) override { return quant::round_to_nearest(context); }
};

/// Mean squared error of the block's outputs with the rounded weights, relative to that of the outputs themselves.
double output_error(const LabBlock& block, const LabResult& result) {
  LabBlock rounded = block;
  rounded.tensors = result.tensors;
  for (const auto& [id, solved] : result.solved) rounded.tensors.weight[id] = dense(solved);
  return relative_error(rounded.outputs(), block.outputs());
}

Result<Outcome> beats_rounding(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  if (made->job.scheme.sparsity || !made->job.scheme.weight)
    return skipped("its default scheme " + made->job.scheme.name + " is not rounding alone");
  Rounding rounding;
  double ours = 0, theirs = 0;
  for (uint64_t i = 0; i < 3; ++i) {
    const LabBlock block = LabBlock::make(subject.seed + i);
    SLIM_ASSIGN(const LabResult result, work(*made->algorithm, block, made->job));
    SLIM_ASSIGN(const LabResult rounded, work(rounding, block, made->job));
    ours += output_error(block, result);
    theirs += output_error(block, rounded);
  }
  char text[96];
  std::snprintf(text, sizeof text, "relative output error %.4f, rounding %.4f (%s)", ours / 3, theirs / 3,
                made->job.scheme.name.c_str());
  if (ours <= 1.05 * theirs) return Outcome{false, text};
  return failure(std::string(text) + ": more than 1.05 times that of rounding");
}

Status all_finite(const LabResult& result) {
  for (const auto& [id, solved] : result.solved)
    SLIM_TRY(check_finite(dense(solved), "the weight of layer " + std::to_string(id)));
  return {};
}

Result<Outcome> no_tokens(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  const LabBlock block = LabBlock::make(subject.seed, /*experts=*/true);
  const auto result = work(*made->algorithm, block, made->job);
  const bool fixed_range =
      made->job.scheme.input && !made->job.scheme.input->dynamic;  // which nothing but tokens can give
  if (!result.ok() && fixed_range) return Outcome{false, "refuses: " + result.status().message()};
  if (!result.ok()) return result.status();
  SLIM_TRY(all_finite(*result));
  return Outcome{};
}

Result<Outcome> no_statistics(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  made->job.faults.no_statistics = true;
  const auto result = work(*made->algorithm, LabBlock::make(subject.seed), made->job);
  return Outcome{false, result.ok() ? "solves without them" : "refuses: " + result.status().message()};
}

Result<Outcome> uneven_groups(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  if (!made->job.scheme.weight || made->job.scheme.weight->granularity != Granularity::kGroup) {
    return skipped("its default scheme " + made->job.scheme.name + " has no groups");
  }
  made->job.scheme.weight->group_size = 48;  // 64 and 128 input channels are no whole groups of it
  const auto result = work(*made->algorithm, LabBlock::make(subject.seed), made->job);
  if (!result.ok()) return Outcome{false, result.status().message()};
  return failure("64 input channels in groups of 48 gave a result, expected an error");
}

Result<Outcome> strides(const Subject& subject) {
  const LabBlock block = LabBlock::make(subject.seed);
  SLIM_ASSIGN(const auto first, ready(subject));
  SLIM_ASSIGN(const LabResult a, work(*first->algorithm, block, first->job));
  SLIM_ASSIGN(const auto second, ready(subject));
  second->job.strided = true;
  SLIM_ASSIGN(const LabResult b, work(*second->algorithm, block, second->job));
  double largest = 0;
  for (const auto& [id, solved] : a.solved)
    largest = std::max(largest, relative_error(dense(b.solved.at(id)), dense(solved)));
  if (largest > 0.02)
    return failure("a weight that is no contiguous tensor is solved otherwise: relative difference " +
                   std::to_string(largest));
  return Outcome{};
}

Result<Outcome> one_token(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  LabBlock block = LabBlock::make(subject.seed);
  block.inputs = {block.inputs[0].narrow(0, 0, 1)};
  SLIM_ASSIGN(const LabResult result, work(*made->algorithm, block, made->job));
  SLIM_TRY(all_finite(result));
  return Outcome{};
}

Result<Outcome> not_a_number(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  LabBlock block = LabBlock::make(subject.seed);
  block.tensors.weight.at(0)[3][5] = std::numeric_limits<float>::quiet_NaN();
  const auto result = work(*made->algorithm, block, made->job);
  if (result.ok()) return failure("a weight with NaN gave a result, expected an error (kNumeric)");
  if (result.status().code() != Code::kNumeric)
    return failure("a weight with NaN gave '" + result.status().message() + "', expected kNumeric");
  return Outcome{false, result.status().message()};
}

Result<Outcome> preserves_function(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  made->job.solve = false;
  const LabBlock block = LabBlock::make(subject.seed);
  SLIM_ASSIGN(const LabResult result, work(*made->algorithm, block, made->job));
  if (result.function_changed) return skipped("it sets weights, which may change the function");
  LabBlock after = block;
  after.tensors = result.tensors;
  const double moved = relative_error(after.outputs(), block.outputs());
  if (moved <= 1e-4) return Outcome{};
  return failure("transform() moved the block's float output by " + std::to_string(moved) + " (relative)");
}

Result<Outcome> blocks_apart(const Subject& subject) {
  const LabBlock first = LabBlock::make(subject.seed), second = LabBlock::make(subject.seed, false, 1);
  SLIM_ASSIGN(const auto straight, ready(subject));
  SLIM_TRY(work(*straight->algorithm, first, straight->job).status());
  SLIM_ASSIGN(const LabResult a, work(*straight->algorithm, second, straight->job));
  SLIM_ASSIGN(const auto resumed, ready(subject));
  SLIM_ASSIGN(const LabResult b, work(*resumed->algorithm, second, resumed->job));
  SLIM_TRY(compare(a, b,
                   "the second block comes out otherwise when another object has done the first: runs could "
                   "not be resumed"));
  return Outcome{};
}

Result<Outcome> host_failures(const Subject& subject) {
  for (const Faults::Loss fault : {Faults::Loss::kStatus, Faults::Loss::kThrow}) {
    SLIM_ASSIGN(const auto made, ready(subject));
    made->job.faults.loss = fault;
    const auto result = work(*made->algorithm, LabBlock::make(subject.seed), made->job);
    if (result.ok() && result->losses == 0) return skipped("it asks for no loss by default");
    if (result.ok()) return failure("the host's error in loss() was swallowed");
    const Status status = result.status();
    if (status.code() != Code::kIo || status.message().find("disk is full") == std::string::npos) {
      return failure("the host's error in loss() became '" + status.message() + "'");
    }
  }
  return Outcome{};
}

Result<Outcome> memory(const Subject& subject) {
  SLIM_ASSIGN(const auto made, ready(subject));
  const auto blocks = [&](int64_t begin, int64_t end) -> Status {
    for (int64_t i = begin; i < end; ++i)
      SLIM_TRY(work(*made->algorithm, LabBlock::make(subject.seed, false, i), made->job).status());
    return {};
  };
  SLIM_TRY(blocks(0, 5));
  const int64_t before = resident_kilobytes();
  SLIM_TRY(blocks(5, 20));
  const int64_t grown = resident_kilobytes() - before;
  constexpr int64_t kAllowed = 15 * 200;  // a block's weights take 200 KiB: what is kept of each would show
  if (grown > kAllowed)
    return failure("15 more blocks took " + std::to_string(grown) + " KiB that were not given back");
  return Outcome{};
}

}  // namespace

std::vector<Check> algorithm_checks() {
  return {{"algorithm/scheme", "results have the codes, shapes and dtypes of every scheme that it accepts",
           &obeys_scheme},
          {"algorithm/same-seed", "the same input gives the same bits", &same_seed},
          {"algorithm/order", "the order in which layers are solved does not matter", &solve_order},
          {"algorithm/rounding", "the block's output error is at most 1.05 times that of rounding",
           &beats_rounding},
          {"algorithm/no-tokens", "an expert that no token reached is solved", &no_tokens},
          {"algorithm/no-statistics", "missing statistics are no crash", &no_statistics},
          {"algorithm/groups", "a width that is no multiple of the group size is an error", &uneven_groups},
          {"algorithm/strides", "weights need not be contiguous", &strides},
          {"algorithm/one-token", "one calibration token is enough not to fail", &one_token},
          {"algorithm/nan", "a weight with NaN is an error (kNumeric)", &not_a_number},
          {"algorithm/function", "transform() keeps the block's float output", &preserves_function},
          {"algorithm/blocks", "a block does not depend on earlier ones: runs can be resumed", &blocks_apart},
          {"algorithm/host-errors", "errors of the host are passed on", &host_failures},
          {"algorithm/memory", "memory does not grow with the number of blocks", &memory}};
}

}  // namespace slim::conformance
