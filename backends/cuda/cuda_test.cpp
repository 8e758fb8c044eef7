#include <doctest/doctest.h>

#include <cmath>

#include "common/arguments.hpp"
#include "conformance/op_table.h"
#include "device.h"
#include "driver.h"
#include "ops.h"
#include "plugin/registry.h"
#include "threads.hpp"

using namespace slim;

namespace {

using cuda::matrix;

kernels::CodeRange range_of(const ops::Rounding& how) {
  return kernels::code_range(how.bits, how.e4m3, how.symmetric);
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
        "no NVIDIA driver: libno_such_driver.so.1 is not found; install the driver of the GPU, or use "
        "--backend cpu");
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
  const std::vector<op_table::Case> cases = op_table::table();
  const auto expected = op_table::expected(cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    const double difference = op_table::difference(expected[i], cases[i].run(at::kCUDA));
    const double bound = op_table::bound_on(cases[i], at::kCUDA, (*backend)->accelerates(cases[i].op));
    CHECK_MESSAGE(difference <= bound,
                  cases[i].op << " (" << cases[i].variant << ") differs by " << difference);
  }
}

TEST_CASE("cuda/ what a thread does to codes and scales gives the reference's bits on the host") {
  ops::force_reference(true);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor weight = op_table::random({37, 208}, 1, type);
    for (const auto& one_case : op_table::roundings(type)) {
      const auto& name = std::get<0>(one_case);
      const auto& how = std::get<1>(one_case);
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
      at::Tensor codes = at::empty(expected.codes.sizes(), at::kByte),
                 decoded = at::empty(codes.sizes(), at::kFloat);
      for (int64_t i = 0; i < codes.numel(); ++i) {
        auto& code = codes.mutable_data_ptr<uint8_t>()[i];
        code = kernels::encode_element(w, i / 208, i % 208, units, scale.const_data_ptr<float>(),
                                       zero.const_data_ptr<float>(), range, kernels::Float::kFloat);
        decoded.mutable_data_ptr<float>()[i] =
            kernels::decode_element(code, units.of(i / 208, i % 208), scale.const_data_ptr<float>(),
                                    zero.const_data_ptr<float>(), range);
      }
      CHECK_MESSAGE(at::equal(codes, expected.codes.view(at::kByte)), name);
      CHECK_MESSAGE(at::equal(decoded, ops::decode(expected.codes, {expected.scale, expected.zero}, how)),
                    name);
    }
  }
  ops::force_reference(false);
}

TEST_CASE("cuda/ what a thread packs and sweeps gives the reference's bits on the host") {
  ops::force_reference(true);
  for (int64_t bits = 1; bits <= 8; ++bits) {
    const at::Tensor codes =
        at::randint(-(int64_t{1} << (bits - 1)), int64_t{1} << (bits - 1), {3, 77}, at::kLong).to(at::kChar);
    const at::Tensor expected = ops::pack_codes(codes, bits);
    at::Tensor packed = at::empty_like(expected);
    for (int64_t i = 0; i < packed.numel(); ++i) {
      const int64_t words = packed.size(1);
      packed.mutable_data_ptr<int32_t>()[i] = static_cast<int32_t>(kernels::pack_word(
          codes.const_data_ptr<int8_t>() + i / words * 77, 77, static_cast<int>(bits), i % words));
    }
    CHECK_MESSAGE(at::equal(packed, expected), bits);
  }
  for (const int64_t of : {0, 4, 40}) {
    const at::Tensor start = op_table::random({9, 64}, 8),
                     factor = op_table::random({64, 64}, 9).mul_(0.1).triu(1).add_(at::eye(64));
    const at::Tensor group = at::arange(64, at::kInt).div(16, "floor").to(at::kInt),
                     scale = op_table::random({9, 4}, 10).abs().add_(0.05);
    const at::Tensor zero = op_table::random({9, 4}, 11).round();
    at::Tensor w = start.clone(), errors = at::zeros_like(w), codes = at::zeros(w.sizes(), at::kChar);
    ops::column_sweep_(w, errors, codes, factor, scale, zero, group, -8, 7, of / 2, of);
    at::Tensor mine = start.clone(), my_errors = at::zeros_like(w),
               my_codes = at::zeros(w.sizes(), at::kChar);
    const kernels::DeviceSweep sweep{factor.const_data_ptr<float>(),
                                     64,
                                     64,
                                     scale.const_data_ptr<float>(),
                                     zero.const_data_ptr<float>(),
                                     4,
                                     4,
                                     group.const_data_ptr<int32_t>(),
                                     -8,
                                     7,
                                     of / 2,
                                     of,
                                     mine.mutable_data_ptr<float>(),
                                     my_errors.mutable_data_ptr<float>(),
                                     my_codes.mutable_data_ptr<int8_t>(),
                                     64,
                                     64,
                                     64};
    for (int64_t row = 0; row < 9; ++row) kernels::sweep_row(sweep, row);
    CHECK_MESSAGE(at::equal(mine, w), of);
    CHECK_MESSAGE(at::equal(my_errors, errors), of);
    CHECK_MESSAGE(at::equal(my_codes, codes), of);
  }
  ops::force_reference(false);
}

namespace {

/// Extremes of every unit, shrunk by one thread, as scales.
at::Tensor searched_scale(const at::Tensor& weight, const ops::Rounding& how,
                          const kernels::DeviceSearch& search) {
  const kernels::DeviceMatrix w = matrix(weight);
  const kernels::DeviceUnits units = cuda::units_of(weight, how.unit_rows, how.unit_columns);
  at::Tensor scale = at::empty({kernels::ceil_div(weight.size(0), how.unit_rows), units.units}, at::kFloat);
  for (int64_t unit = 0; unit < scale.numel(); ++unit) {
    const auto ends = kernels::shrunk(w, kernels::area_of(w, units, unit), warp_extremes(w, units, unit),
                                      search, range_of(how), w.type, kernels::OneThread());
    scale.mutable_data_ptr<float>()[unit] =
        kernels::params_of(ends.low, ends.high, range_of(how), w.type).scale;
  }
  return scale;
}

double weighted_error(const at::Tensor& weight, const ops::ScaleZero& params, const ops::Rounding& how,
                      const at::Tensor& importance, double norm) {
  const at::Tensor decoded = ops::decode(ops::encode(weight, params, how, at::kFloat), params, how);
  return (decoded - weight.to(at::kFloat)).abs().pow(norm).mul(importance).sum(at::kDouble).item<double>();
}

}  // namespace

TEST_CASE("cuda/ a thread's search of ranges finds as little error as the reference") {
  ops::force_reference(true);
  const at::Tensor importance = op_table::random({208}, 2).square();
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = op_table::random({37, 208}, 1, type);
    for (const ops::Rounding& how : {ops::Rounding{1, 16, 4, false, true, type},
                                     {16, 80, 8, true, true, type},
                                     {1, 208, 3, false, true, type}}) {
      for (const double norm : {2.0, 2.4}) {
        const auto expected = ops::choose_params(weight, how, {importance, 0.6, norm, 12, 0});
        const at::Tensor scale =
            searched_scale(weight, how, {importance.const_data_ptr<float>(), 0.6, norm, 12});
        const double least = weighted_error(weight, expected, how, importance, norm);
        CHECK(weighted_error(weight, {scale, {}}, how, importance, norm) ==
              doctest::Approx(least).epsilon(1e-4));
      }
    }
  }
  ops::force_reference(false);
}

TEST_CASE("cuda/ what a thread adds up agrees with the reference on the host") {
  ops::force_reference(true);
  const at::Tensor x = op_table::random({40, 30}, 7, at::kBFloat16);
  at::Tensor sums[4] = {at::zeros({30}), at::zeros({30}), at::full({30}, 1e9), at::full({30}, -1e9)};
  ops::channel_moments_(sums[0], sums[1], sums[2], sums[3], x);
  for (int64_t column = 0; column < 30; ++column) {
    const kernels::Moments found = kernels::column_moments(matrix(x), 0, 40, column);
    CHECK(found.abs == doctest::Approx(sums[0][column].item<float>()).epsilon(1e-5));
    CHECK(found.square == doctest::Approx(sums[1][column].item<float>()).epsilon(1e-5));
    CHECK(found.ends.low == sums[2][column].item<float>());
    CHECK(found.ends.high == sums[3][column].item<float>());
  }
  const ops::Rounding how{1, 16, 4, false, false};
  const at::Tensor weight = op_table::random({9, 208}, 1);
  const auto rounded = ops::round_units(weight, how, {}, at::kFloat);
  const auto expected = ops::rounding_error(weight, rounded.codes, {rounded.scale, rounded.zero}, how);
  double error = 0, size = 0;
  for (int64_t i = 0; i < 9 * 32; ++i) {
    const auto part =
        kernels::row_errors(matrix(weight), static_cast<const uint8_t*>(rounded.codes.const_data_ptr()),
                            cuda::units_of(weight, 1, 16), i / 32, kernels::floats(rounded.scale),
                            kernels::floats(rounded.zero), range_of(how), i % 32, 32);
    error += part.error;
    size += part.weight;
  }
  CHECK(error == doctest::Approx(expected.error).epsilon(1e-5));
  CHECK(size == doctest::Approx(expected.weight).epsilon(1e-5));
  ops::force_reference(false);
}

TEST_CASE("cuda/ what a thread counts, chooses and packs gives the reference's bits on the host") {
  ops::force_reference(true);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor x = op_table::random({19, 45}, 3, type), importance = op_table::random({45}, 4).abs();
    for (const int exponent : {-3, -9, -20}) {
      at::Tensor counts = at::zeros({4096}, at::kLong);
      for (int64_t i = 0; i < x.numel(); ++i) {
        const float value = kernels::element(matrix(x), i / 45, i % 45);
        ++counts.mutable_data_ptr<int64_t>()[kernels::bin_of(value, std::ldexp(1.0F, -exponent), 2048.0F) +
                                             2048];
      }
      CHECK(at::equal(counts, ops::histogram(x, exponent, 2048).counts));
    }
    for (const auto& [keep, of] : {std::pair<int64_t, int64_t>{2, 4}, {1, 3}, {3, 70}}) {
      at::Tensor mask = at::empty(x.sizes(), at::kBool);
      for (int64_t i = 0; i < x.numel(); ++i) {
        mask.mutable_data_ptr<bool>()[i] =
            kernels::mask_entry(matrix(x), importance.const_data_ptr<float>(), i / 45, i % 45, keep, of);
      }
      CHECK(at::equal(mask, ops::sparsity_mask(x, importance, keep, of)));
    }
  }
  const at::Tensor codes = at::randint(-8, 8, {24, 13}, at::kLong).to(at::kChar);
  at::Tensor packed = at::empty({13, 3}, at::kInt);
  for (int64_t i = 0; i < packed.numel(); ++i) {
    packed.mutable_data_ptr<int32_t>()[i] =
        static_cast<int32_t>(kernels::awq_word(codes.const_data_ptr<int8_t>(), 13, i / 3, i % 3));
  }
  CHECK(at::equal(packed, ops::pack_awq(codes)));
  ops::force_reference(false);
}

TEST_CASE("cuda/ what a thread evaluates for AWQ agrees with the reference on the host") {
  ops::force_reference(true);
  const at::Tensor weight = op_table::random({6, 64}, 4), x = op_table::random({200, 64}, 5),
                   scales = op_table::random({64}, 6).abs().add(0.1);
  const at::Tensor gram = at::matmul(x.t(), x).div_(200.0);
  for (const bool symmetric : {true, false}) {
    const ops::Rounding how{1, 32, 4, false, symmetric};
    const kernels::DeviceUnits units = cuda::units_of(weight, 1, 32);
    kernels::DeviceMatrix scaled = matrix(weight);
    scaled.channel_scale = scales.const_data_ptr<float>();
    at::Tensor delta = at::empty_like(weight);
    for (int64_t unit = 0; unit < 12; ++unit) {
      const kernels::Ends ends = warp_extremes(scaled, units, unit);
      const auto params = kernels::params_of(ends.low, ends.high, range_of(how), kernels::Float::kFloat);
      kernels::write_scaled_error(scaled, kernels::area_of(scaled, units, unit), range_of(how), params, 0, 1,
                                  delta.mutable_data_ptr<float>());
    }
    const double expected =
        ops::scale_losses(weight, scales.view({1, 64}), gram, {}, how, {})[0].item<double>();
    CHECK(at::matmul(delta, gram).mul_(delta).sum(at::kDouble).item<double>() ==
          doctest::Approx(expected).epsilon(1e-4));

    const at::Tensor blocks =
        at::stack({gram.narrow(0, 0, 32).narrow(1, 0, 32), gram.narrow(0, 32, 32).narrow(1, 32, 32)})
            .contiguous();
    const ops::GroupRanges ranges = ops::gram_ranges(weight, blocks, {}, how);
    const auto error = [&](double low, double high, int64_t row, int64_t group) {
      const auto params =
          ops::choose_params(at::tensor({low, high}, at::kFloat).view({1, 2}), {1, 2, 4, false, symmetric});
      const at::Tensor w = weight.narrow(0, row, 1).narrow(1, group * 32, 32);
      const at::Tensor d = ops::decode(ops::encode(w, params, how, at::kFloat), params, how) - w;
      return at::matmul(at::matmul(d, blocks[group]), d.t()).item<double>();
    };
    for (int64_t i = 0; i < 12; ++i) {
      float scratch[32];
      const auto ends = kernels::group_range(
          weight.const_data_ptr<float>() + i * 32, blocks[i % 2].const_data_ptr<float>(), nullptr, 32,
          range_of(how), kernels::Float::kFloat, scratch, kernels::OneThread());
      const double least = error(ranges.low[i / 2][i % 2].item<double>(),
                                 ranges.high[i / 2][i % 2].item<double>(), i / 2, i % 2);
      CHECK(error(ends.low, ends.high, i / 2, i % 2) == doctest::Approx(least).epsilon(1e-4));
    }
  }
  ops::force_reference(false);
}
