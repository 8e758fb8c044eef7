// bench_kernels [--json] [--threads N] [--only OPERATOR]...: the cpu backend's kernels against the core's reference, and with one thread against
// all, measured in one run on this machine.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "plugin/registry.h"
#include "slim/ops.hpp"
#include "util/host_memory.h"

namespace {
using namespace slim;

struct Bench {
  std::string op, input;
  std::function<void()> run;
};

at::Tensor bf16(at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); }

std::vector<Bench> benches() {
  constexpr int64_t kOut = 4096, kIn = 4096, kGroup = 128;
  const at::Tensor weight = bf16({kOut, kIn}), wide = at::randn({kOut, 1024});
  const ops::Rounding int4{1, kGroup, 4, false, true, at::kBFloat16},
      int4_zero{1, kGroup, 4, false, false, at::kBFloat16};
  const ops::Rounding e4m3{1, kIn, 8, true, true, at::kFloat}, block{128, 128, 8, true, true, at::kFloat};
  std::vector<Bench> all;
  const auto add = [&](const char* op, const char* input, std::function<void()> run) {
    all.push_back({op, input, std::move(run)});
  };
  add("round_units", "int4, groups of 128", [=] { ops::round_units(weight, int4, {}, at::kFloat); });
  add("round_units", "int4 with zero points", [=] { ops::round_units(weight, int4_zero, {}, at::kFloat); });
  add("round_units", "E4M3 per channel", [=] { ops::round_units(weight, e4m3, {}, at::kFloat); });
  add("round_units", "E4M3, blocks of 128x128", [=] { ops::round_units(weight, block, {}, at::kFloat); });
  const at::Tensor rows = weight.narrow(0, 0, 512);
  add("choose_params", "extremes, groups of 128", [=] { ops::choose_params(weight, int4); });
  add("choose_params", "least squares, 40 steps", [=] {
    ops::choose_params(rows, int4, {{}, 0.6, 2, 40, 0});
  });
  const ops::RoundedUnits rounded = ops::round_units(weight, int4, {}, at::kFloat);
  const ops::ScaleZero params = ops::choose_params(weight, int4),
                       params_e4m3 = ops::choose_params(weight, e4m3);
  add("encode", "int4", [=] { ops::encode(weight, params, int4, at::kFloat); });
  add("cast_e4m3", "per channel", [=] { ops::encode(weight, params_e4m3, e4m3, at::kFloat); });
  add("decode", "int4", [=] { ops::decode(rounded.codes, {rounded.scale, rounded.zero}, int4); });
  add("rounding_error", "int4", [=] {
    ops::rounding_error(weight, rounded.codes, {rounded.scale, rounded.zero}, int4);
  });
  for (const int64_t bits : {3, 4, 8}) {
    const at::Tensor codes = rounded.codes.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
    all.push_back({"pack_codes", std::to_string(bits) + " bits", [=] { ops::pack_codes(codes, bits); }});
    all.push_back({"pack_columns", std::to_string(bits) + " bits", [=] { ops::pack_columns(codes, bits); }});
  }
  add("pack_awq", "4 bits", [=] { ops::pack_awq(rounded.codes); });
  const at::Tensor importance = at::rand({kIn});
  add("sparsity_mask", "2:4 by magnitude", [=] { ops::sparsity_mask(weight, {}, 2, 4); });
  add("sparsity_mask", "4:8 with importance", [=] { ops::sparsity_mask(weight, importance, 4, 8); });
  const at::Tensor x = bf16({2048, 2048});
  add("gram_", "bf16 2048 tokens x 2048", [=] {
    static at::Tensor sum = at::zeros({2048, 2048});
    ops::gram_(sum, x);
  });
  add("channel_moments_", "bf16 2048 tokens x 2048", [=] {
    static at::Tensor abs = at::zeros({2048}), square = at::zeros({2048}), min = at::zeros({2048}),
                      max = at::zeros({2048});
    ops::channel_moments_(abs, square, min, max, x);
  });
  add("histogram", "bf16 2048 tokens x 2048", [=] { ops::histogram(x, -8, 2048); });
  const at::Tensor factor = at::randn({128, 128}).mul_(0.05).triu(1).add_(at::eye(128));
  const at::Tensor scale = at::full({kOut, 1}, 0.3), group = at::zeros({128}, at::kInt),
                   block_weight = at::randn({kOut, 128});
  const auto sweep = [=](int64_t keep, int64_t of) {
    static at::Tensor w = at::empty_like(block_weight), errors = at::empty_like(w),
                      codes = at::empty(w.sizes(), at::kChar);
    w.copy_(block_weight);
    ops::column_sweep_(w, errors, codes, factor, scale, std::nullopt, group, -8, 7, keep, of);
  };
  add("column_sweep_", "4096 rows x 128 columns, int4", [=] { sweep(0, 0); });
  add("column_sweep_", "the same, 2:4", [=] { sweep(2, 4); });
  const at::Tensor gram = at::matmul(wide.t(), wide).div_(static_cast<double>(kOut));
  const at::Tensor blocks =
      gram.view({8, kGroup, 8, kGroup}).diagonal(0, 0, 2).permute({2, 0, 1}).contiguous();
  const at::Tensor part = wide.narrow(0, 0, 1024);
  const at::Tensor coupling = at::randn_like(part);
  add("gram_ranges", "1024 x 1024, int4 with zero points",
      [=] { ops::gram_ranges(part, blocks, {}, int4_zero); });
  add("gram_ranges", "1024 x 1024, int4, coupled", [=] { ops::gram_ranges(part, blocks, coupling, int4); });
  add("sweep_ranges", "4096 rows x 128 columns, int4", [=] {
    ops::sweep_ranges(block_weight, factor, {1, kGroup, 4, false, true, at::kBFloat16});
  });
  const at::Tensor scales = at::rand({16, 1024}).add_(0.5), sample = wide.narrow(0, 0, 128);
  add("scale_losses", "128 x 1024, 16 candidates",
      [=] { ops::scale_losses(sample, scales, gram, {}, int4_zero, {}); });
  add("scale_losses", "the same, by group",
      [=] { ops::scale_losses(sample, scales, blocks, {}, int4_zero, {}); });
  add("linear", "bf16 2048 tokens, 2048 x 4096", [=, w = weight.narrow(1, 0, 2048).contiguous()] {
    ops::reference_forced() ? at::linear(x, w) : ops::linear(x, w);  // LibTorch's own stands for a reference
  });
  return all;
}

/// Least of several runs: what the machine can do when nobody disturbs it.
double seconds(const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int i = 0; i < 4; ++i) {
    const auto begin = Clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

Status run(bool json, const std::set<std::string>& only) {
  at::manual_seed(1);
  PluginRegistry registry;
  SLIM_ASSIGN(const auto backend, registry.backend("cpu"));
  std::vector<Bench> all = benches();
  for (const std::string& op : only) {
    const bool known =
        std::any_of(all.begin(), all.end(), [&](const Bench& bench) { return bench.op == op; });
    if (!known)
      return {Code::kInvalidArgument,
              "--only " + op + ": no benchmark of this operator; see slim/ops.hpp for their names"};
  }
  std::erase_if(all, [&](const Bench& bench) { return !only.empty() && !only.contains(bench.op); });
  std::vector<double> reference, fast, single;
  ops::force_reference(true);
  for (const Bench& bench : all) reference.push_back(seconds(bench.run));
  ops::force_reference(false);
  SLIM_TRY(backend->open({}));
  const int threads = at::get_num_threads();
  for (const Bench& bench : all) {  // in turns: the machine may change its pace
    fast.push_back(seconds(bench.run));
    at::set_num_threads(1);
    single.push_back(seconds(bench.run));
    at::set_num_threads(threads);
  }
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  if (!json)
    std::printf("%d threads\n%-17s %-36s %12s %12s %7s %15s\n", threads, "operator", "input", "reference ms",
                "kernel ms", "times", "over one thread");
  for (size_t i = 0; i < all.size(); ++i) {
    results.push_back({{"op", all[i].op},
                       {"input", all[i].input},
                       {"reference_s", reference[i]},
                       {"kernel_s", fast[i]},
                       {"one_thread_s", single[i]},
                       {"ratio", reference[i] / fast[i]},
                       {"over_one_thread", single[i] / fast[i]}});
    if (!json)
      std::printf("%-17s %-36s %12.2f %12.2f %7.1f %15.2f\n", all[i].op.c_str(), all[i].input.c_str(),
                  1e3 * reference[i], 1e3 * fast[i], reference[i] / fast[i], single[i] / fast[i]);
  }
  if (json)
    std::printf("%s\n", nlohmann::ordered_json{{"threads", threads}, {"results", results}}.dump(2).c_str());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  bool json = false;
  std::set<std::string> only;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--json") json = true;
    if (word == "--only" && i + 1 < argc) only.insert(argv[++i]);
    if (word == "--threads" && i + 1 < argc) at::set_num_threads(std::atoi(argv[++i]));
  }
  use_huge_recycled_memory(int64_t{1}
                           << 30);  // as slim does, so that clearing new pages is not what is measured
  const Status status = run(json, only);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
