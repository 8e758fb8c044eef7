#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <doctest/doctest.h>

#include <functional>
#include <map>
#include <set>

#include "conformance/op_table.h"
#include "ops.h"
#include "plugin/registry.h"
#include "slim/parallel.hpp"

using namespace slim;

TEST_CASE("cpu/ it is loaded by its id and reports one device with memory") {
  PluginRegistry registry;
  auto backend = registry.backend("cpu");
  REQUIRE_MESSAGE(backend.ok(), backend.status().message());
  CHECK((*backend)->device_type() == c10::DeviceType::CPU);
  REQUIRE((*backend)->open({}).ok());
  const auto devices = (*backend)->devices();
  REQUIRE(devices.ok());
  REQUIRE(devices->size() == 1);
  CHECK(devices->front().total_bytes > 0);
  CHECK(devices->front().free_bytes > 0);
  CHECK(devices->front().free_bytes <= devices->front().total_bytes);
}

namespace {
Owned<Backend> cpu_backend(PluginRegistry& registry, const Options& options) {
  auto backend = registry.backend("cpu");
  REQUIRE_MESSAGE(backend.ok(), backend.status().message());
  const Status status = (*backend)->open(options);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return std::move(*backend);
}
}  // namespace

TEST_CASE(
    "cpu/ every kernel of every instruction set agrees with the reference, and the matrix of support says "
    "which there are") {
  PluginRegistry registry;
  const std::vector<op_table::Case> cases = op_table::table();
  const std::vector<std::vector<at::Tensor>> expected = op_table::expected(cases);
  for (const std::string& set : cpu::instruction_sets()) {
    const auto backend = cpu_backend(registry, {{"instructions", set}});
    std::map<std::string, std::pair<int, double>> matrix;
    for (size_t i = 0; i < cases.size(); ++i) {
      const double difference = op_table::difference(expected[i], cases[i].run(at::kCPU));
      CHECK_MESSAGE(difference <= cases[i].bound,
                    set << ": " << cases[i].op << " (" << cases[i].variant << ") differs by " << difference);
      auto& [count, worst] = matrix[cases[i].op];
      ++count;
      worst = std::max(worst, difference);
    }
    for (const auto& [op, result] : matrix) {
      std::printf("%-9s %-17s %-10s %4d cases, largest difference %.1e\n", set.c_str(), op.c_str(),
                  backend->accelerates(op) ? "kernel" : "reference", result.first, result.second);
    }
  }
}

TEST_CASE("cpu/ an unknown instruction set is refused") {
  PluginRegistry registry;
  const auto backend = cpu_backend(registry, {});
  CHECK(backend->open({{"instructions", "avx1024"}}).message().find("lacks avx1024") != std::string::npos);
}

TEST_CASE("cpu/ every operator that it accelerates exists, and has a reference") {
  for (const std::string& op : cpu::accelerated_ops()) {
    const auto handle = c10::Dispatcher::singleton().findSchema({"slim::" + op, ""});
    REQUIRE_MESSAGE(handle.has_value(), op);
    CHECK(handle->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd));
  }
}

namespace {
/// f with so many threads; the number of loops of slim::parallel_for() that it shared among threads.
template <class F>
int64_t shared_loops(int threads, F&& f) {
  const int before = at::get_num_threads();
  at::set_num_threads(threads);
  const ParallelCounts counts = parallel_counts();
  f();
  at::set_num_threads(before);
  return parallel_counts().shared - counts.shared;
}
}  // namespace

TEST_CASE("cpu/ the work of every kernel enters more than one thread") {
  PluginRegistry registry;
  const auto backend = cpu_backend(registry, {});
  const at::Tensor weight = at::randn({512, 1024}), x = at::randn({2048, 256}).to(at::kBFloat16),
                   codes = at::randint(-8, 8, {1024, 512}, at::kChar);
  const ops::Rounding int4{1, 128, 4, false, true, at::kFloat}, e4m3{1, 1024, 8, true, true, at::kFloat};
  const ops::ScaleZero params = ops::choose_params(weight, int4),
                       params_e4m3 = ops::choose_params(weight, e4m3);
  const at::Tensor encoded = ops::encode(weight, params, int4, at::kFloat),
                   blocks = at::eye(128).expand({8, 128, 128}).contiguous(),
                   group_weight = weight.narrow(1, 0, 128);
  const std::map<std::string, std::function<void()>> work = {
      {"cast_e4m3", [&] { ops::encode(weight, params_e4m3, e4m3, at::kFloat); }},
      {"channel_moments_",
       [&] {
         at::Tensor sums = at::zeros({4, 256});
         ops::channel_moments_(sums[0], sums[1], sums[2], sums[3], x);
       }},
      {"choose_params", [&] { ops::choose_params(weight, int4); }},
      {"column_sweep_",
       [&] {
         at::Tensor w = group_weight.clone(), errors = at::empty_like(w),
                    out = at::empty(w.sizes(), at::kChar);
         ops::column_sweep_(w, errors, out, at::eye(128), at::ones({512, 1}), std::nullopt,
                            at::zeros({128}, at::kInt), -8, 7, 0, 0);
       }},
      {"decode", [&] { ops::decode(encoded, params, int4); }},
      {"encode", [&] { ops::encode(weight, params, int4, at::kFloat); }},
      {"gram_", {}},  // LibTorch's product, except with AVX512-BF16
      {"gram_ranges", [&] { ops::gram_ranges(weight, blocks, {}, int4); }},
      {"histogram", [&] { ops::histogram(x, -8, 1024); }},
      {"pack_awq", [&] { ops::pack_awq(codes); }},
      {"pack_codes", [&] { ops::pack_codes(codes, 4); }},
      {"pack_columns", [&] { ops::pack_columns(codes, 4); }},
      {"round_units", [&] { ops::round_units(weight, int4, {}, at::kFloat); }},
      {"round_units_measured", [&] { ops::round_units_measured(weight, int4, {}, at::kFloat); }},
      {"rounding_error", [&] { ops::rounding_error(weight, encoded, params, int4); }},
      {"scale_losses",
       [&] {
         ops::scale_losses(weight, at::ones({4, 1024}), blocks, {}, int4, {});
       }},
      {"sparsity_mask", [&] { ops::sparsity_mask(weight, {}, 2, 4); }},
      {"sweep_ranges", [&] { ops::sweep_ranges(group_weight, at::eye(128), int4); }}};
  for (const std::string& op : cpu::accelerated_ops()) {
    REQUIRE_MESSAGE(work.contains(op), op);
    if (!work.at(op)) continue;
    CHECK_MESSAGE(shared_loops(2, work.at(op)) >= 1, op);
    CHECK_MESSAGE(shared_loops(1, work.at(op)) == 0, op);
  }
}

TEST_CASE(
    "cpu/ every kernel but those that end in LibTorch's products gives the same bits with 1, 2 and 3 "
    "threads") {
  PluginRegistry registry;
  const auto backend = cpu_backend(registry, {});
  const std::set<std::string> products = {"gram_", "scale_losses"};
  const int before = at::get_num_threads();
  for (const op_table::Case& one : op_table::table()) {
    if (products.contains(one.op)) continue;
    std::vector<std::vector<at::Tensor>> results;
    for (const int threads : {1, 2, 3}) {
      at::set_num_threads(threads);
      results.push_back(one.run(at::kCPU));
    }
    for (const auto& result : results) {
      for (size_t i = 0; i < result.size(); ++i) {
        const auto bytes = [](const at::Tensor& x) { return x.contiguous().view(at::kByte); };
        CHECK_MESSAGE(at::equal(bytes(result[i]), bytes(results.front()[i])), one.op, " ", one.variant);
      }
    }
  }
  at::set_num_threads(before);
}
