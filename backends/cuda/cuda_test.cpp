#include <doctest/doctest.h>

#include "common/op_table.hpp"
#include "driver.h"
#include "ops.h"
#include "plugin/registry.h"
#include "threads.hpp"

using namespace slim;

namespace {

kernels::DeviceMatrix matrix(const at::Tensor& x) {
  const auto type = x.scalar_type() == at::kFloat ? kernels::Float::kFloat : x.scalar_type() == at::kHalf ? kernels::Float::kHalf : kernels::Float::kBFloat16;
  return {x.const_data_ptr(), type, x.size(0), x.size(1), x.stride(0)};
}

kernels::CodeRange range_of(const ops::Rounding& how) {
  if (how.e4m3) return {-448, 448, true, true};
  const auto half = static_cast<float>(int64_t{1} << (how.bits - 1));
  return {-half, half - 1, false, how.symmetric};
}

/// What the threads of a warp find for one unit.
kernels::Ends warp_extremes(const kernels::DeviceMatrix& w, const kernels::DeviceUnits& units, int64_t unit) {
  kernels::Ends ends = kernels::unit_extremes(w, units, unit, 0, 32);
  for (int64_t lane = 1; lane < 32; ++lane) {
    const kernels::Ends other = kernels::unit_extremes(w, units, unit, lane, 32);
    kernels::widen(ends, other.low);
    kernels::widen(ends, other.high);
  }
  return ends;
}

}  // namespace

TEST_CASE("cuda/ without a driver it is refused with what is missing and what to do") {
  const auto driver = cuda::Driver::open("libno_such_driver.so.1");
  REQUIRE_FALSE(driver.ok());
  CHECK(driver.status().message() ==
        "no NVIDIA driver: libno_such_driver.so.1 is not found; install the driver of the GPU, or use --backend cpu");
  CHECK(cuda::Driver::open("libdl.so.2").status().message().find("is no NVIDIA driver") != std::string::npos);
}

TEST_CASE("cuda/ the plugin is loaded without a GPU, and opens or says why not") {
  PluginRegistry registry;
  auto backend = registry.backend("cuda");
  REQUIRE_MESSAGE(backend.ok(), backend.status().message());
  CHECK((*backend)->device_type() == c10::DeviceType::CUDA);
  CHECK((*backend)->accelerates("column_sweep_"));
  const Status status = (*backend)->open({});
  if (!status.ok()) {
    CHECK(status.message().find("--backend cpu") != std::string::npos);
    return;
  }
  for (const op_table::Case& test : op_table::table()) {
    ops::force_reference(true);
    const auto expected = test.run(at::kCPU);
    ops::force_reference(false);
    const double difference = op_table::difference(expected, test.run(at::kCUDA));
    // LibTorch's own operators on CUDA divide and sum in another order than on the CPU.
    const double bound = (*backend)->accelerates(test.op) ? test.bound : std::max(test.bound, 1e-4);
    CHECK_MESSAGE(difference <= bound, test.op << " (" << test.variant << ") differs by " << difference);
  }
}

TEST_CASE("cuda/ what a thread does to codes and scales gives the reference's bits on the host") {
  ops::force_reference(true);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor weight = op_table::random({37, 208}, 1, type);
    for (const auto& [name, how] : op_table::roundings(type)) {
      const auto expected = ops::round_units(weight, how, {}, at::kFloat);
      const kernels::DeviceMatrix w = matrix(weight);
      const kernels::CodeRange range = range_of(how);
      const int64_t columns = std::min<int64_t>(how.unit_columns, 208);
      const kernels::DeviceUnits units{how.unit_rows, columns, (208 + columns - 1) / columns};
      at::Tensor scale = at::empty_like(expected.scale), zero = at::empty_like(expected.scale);
      for (int64_t unit = 0; unit < scale.numel(); ++unit) {
        const kernels::Ends ends = warp_extremes(w, units, unit);
        const auto params = kernels::params_of(ends.low, ends.high, range, w.type);
        scale.mutable_data_ptr<float>()[unit] = params.scale;
        zero.mutable_data_ptr<float>()[unit] = params.zero;
      }
      CHECK_MESSAGE(at::equal(scale, expected.scale), name);
      if (!range.symmetric) CHECK_MESSAGE(at::equal(zero, expected.zero), name);
      at::Tensor codes = at::empty(expected.codes.sizes(), at::kByte), decoded = at::empty(codes.sizes(), at::kFloat);
      for (int64_t i = 0; i < codes.numel(); ++i) {
        auto& code = codes.mutable_data_ptr<uint8_t>()[i];
        code = kernels::encode_element(w, i / 208, i % 208, units, scale.const_data_ptr<float>(), zero.const_data_ptr<float>(), range, kernels::Float::kFloat);
        decoded.mutable_data_ptr<float>()[i] =
            kernels::decode_element(code, units.of(i / 208, i % 208), scale.const_data_ptr<float>(), zero.const_data_ptr<float>(), range);
      }
      CHECK_MESSAGE(at::equal(codes, expected.codes.view(at::kByte)), name);
      CHECK_MESSAGE(at::equal(decoded, ops::decode(expected.codes, {expected.scale, expected.zero}, how)), name);
    }
  }
  ops::force_reference(false);
}

TEST_CASE("cuda/ what a thread packs and sweeps gives the reference's bits on the host") {
  ops::force_reference(true);
  for (int64_t bits = 1; bits <= 8; ++bits) {
    const at::Tensor codes = at::randint(-(int64_t{1} << (bits - 1)), int64_t{1} << (bits - 1), {3, 77}, at::kLong).to(at::kChar);
    const at::Tensor expected = ops::pack_codes(codes, bits);
    at::Tensor packed = at::empty_like(expected);
    for (int64_t i = 0; i < packed.numel(); ++i) {
      const int64_t words = packed.size(1);
      packed.mutable_data_ptr<int32_t>()[i] =
          static_cast<int32_t>(kernels::pack_word(codes.const_data_ptr<int8_t>() + i / words * 77, 77, static_cast<int>(bits), i % words));
    }
    CHECK_MESSAGE(at::equal(packed, expected), bits);
  }
  for (const int64_t of : {0, 4, 40}) {
    const at::Tensor start = op_table::random({9, 64}, 8), factor = op_table::random({64, 64}, 9).mul_(0.1).triu(1).add_(at::eye(64));
    const at::Tensor group = at::arange(64, at::kInt).div(16, "floor").to(at::kInt), scale = op_table::random({9, 4}, 10).abs().add_(0.05);
    const at::Tensor zero = op_table::random({9, 4}, 11).round();
    at::Tensor w = start.clone(), errors = at::zeros_like(w), codes = at::zeros(w.sizes(), at::kChar);
    ops::column_sweep_(w, errors, codes, factor, scale, zero, group, -8, 7, of / 2, of);
    at::Tensor mine = start.clone(), my_errors = at::zeros_like(w), my_codes = at::zeros(w.sizes(), at::kChar);
    const kernels::DeviceSweep sweep{factor.const_data_ptr<float>(), 64, 64, scale.const_data_ptr<float>(), zero.const_data_ptr<float>(), 4, 4,
                                     group.const_data_ptr<int32_t>(), -8, 7, of / 2, of, mine.mutable_data_ptr<float>(),
                                     my_errors.mutable_data_ptr<float>(), my_codes.mutable_data_ptr<int8_t>(), 64, 64, 64};
    for (int64_t row = 0; row < 9; ++row) kernels::sweep_row(sweep, row);
    CHECK_MESSAGE(at::equal(mine, w), of);
    CHECK_MESSAGE(at::equal(my_errors, errors), of);
    CHECK_MESSAGE(at::equal(my_codes, codes), of);
  }
  ops::force_reference(false);
}
