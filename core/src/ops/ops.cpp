#include "slim/ops.hpp"

#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "ops/call.h"
#include "slim/parallel.hpp"

namespace slim::ops {
namespace {

// Rows converted to fp32 at a time: enough for an efficient product, small beside the weights of a block.
constexpr int64_t kRowsPerChunk = 4096;

template <class F>
void for_each_float_chunk(const at::Tensor& x, F&& f) {
  for (int64_t begin = 0; begin < x.size(0); begin += kRowsPerChunk) {
    f(x.narrow(0, begin, std::min(kRowsPerChunk, x.size(0) - begin)).to(at::kFloat));
  }
}

// Only blocks on and above the diagonal are multiplied: half the work.
constexpr int64_t kGramBlock = 512;

void gram_reference(at::Tensor acc, const at::Tensor& x) {
  const int64_t features = acc.size(0);
  for_each_float_chunk(x, [&](const at::Tensor& rows) {
    for (int64_t begin = 0; begin < features; begin += kGramBlock) {
      const int64_t size = std::min(kGramBlock, features - begin);
      const int64_t rest = features - begin;
      at::Tensor above = acc.narrow(0, begin, size).narrow(1, begin, rest);
      above.addmm_(rows.narrow(1, begin, size).t(), rows.narrow(1, begin, rest));
    }
  });
}

/// Tiles of 64 x 64 stay in the first cache while they are read by rows and written by columns.
template <class T>
void mirror_tiles(T* const data, int64_t size, int64_t stride) {
  constexpr int64_t kTile = 64;
  const int64_t tiles = (size + kTile - 1) / kTile;
  parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t row_end = std::min(size, (tile + 1) * kTile);
      for (int64_t column = 0; column < row_end; column += kTile) {
        for (int64_t i = tile * kTile; i < row_end; ++i) {
          for (int64_t j = column; j < std::min(i, column + kTile); ++j)
            data[i * stride + j] = data[j * stride + i];
        }
      }
    }
  });
}

void channel_moments_reference(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max,
                               const at::Tensor& x) {
  for_each_float_chunk(x, [&](const at::Tensor& rows) {
    sum_abs.add_(rows.abs().sum(0));
    sum_square.add_(rows.square().sum(0));
    const auto [low, high] = at::aminmax(rows, 0);
    at::minimum_out(min, min, low);
    at::maximum_out(max, max, high);
  });
}

constexpr int64_t kValuesPerChunk = 1 << 20;  // bounds the temporary indices

std::tuple<at::Tensor, at::Tensor> histogram_reference(const at::Tensor& x, int64_t exponent,
                                                       int64_t bins_per_side) {
  const auto half = static_cast<double>(bins_per_side),
             per_bin = std::ldexp(1.0, static_cast<int>(-exponent));
  at::Tensor counts = at::zeros({2 * bins_per_side}, x.options().dtype(at::kLong));
  const at::Tensor values = x.reshape({-1});
  for (int64_t begin = 0; begin < values.size(0); begin += kValuesPerChunk) {
    const at::Tensor chunk =
        values.narrow(0, begin, std::min(kValuesPerChunk, values.size(0) - begin)).to(at::kFloat);
    const at::Tensor bin =
        (chunk * per_bin).floor_().clamp_(-half, half - 1).nan_to_num_(-half);  // exact: a power of two
    counts.add_(at::bincount(bin.to(at::kInt).add_(bins_per_side), {}, 2 * bins_per_side));
  }
  const auto [low, high] = at::aminmax(x);
  return {counts, at::stack({low, high}).to(at::kFloat)};
}

std::atomic<bool> forced{false};

}  // namespace

void force_reference(bool forced_now) { forced.store(forced_now, std::memory_order_relaxed); }
bool reference_forced() { return forced.load(std::memory_order_relaxed); }

std::vector<std::string> operator_names() {
  std::vector<std::string> names;
  const std::string space = "slim::";
  for (const c10::OperatorName& op : c10::Dispatcher::singleton().getAllOpNames()) {
    if (op.name.starts_with(space)) names.push_back(op.name.substr(space.size()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void gram_(at::Tensor acc, const at::Tensor& x) {
  static const Operator<void(at::Tensor, const at::Tensor&)> op("slim::gram_");
  op(std::move(acc), x);
}

void mirror_upper_(const at::Tensor& matrix) {
  TORCH_CHECK(matrix.dim() == 2 && matrix.size(0) == matrix.size(1),
              "mirror_upper_: expected a square matrix, found ", matrix.sizes());
  if (matrix.device().is_cpu() && matrix.scalar_type() == at::kFloat && matrix.stride(1) == 1) {
    mirror_tiles(matrix.mutable_data_ptr<float>(), matrix.size(0), matrix.stride(0));
  } else {
    matrix.copy_(matrix.triu() + matrix.triu(1).t());
  }
}

void channel_moments_(at::Tensor sum_abs, at::Tensor sum_square, at::Tensor min, at::Tensor max,
                      const at::Tensor& x) {
  static const Operator<void(at::Tensor, at::Tensor, at::Tensor, at::Tensor, const at::Tensor&)> op(
      "slim::channel_moments_");
  op(std::move(sum_abs), std::move(sum_square), std::move(min), std::move(max), x);
}

BinCounts histogram(const at::Tensor& x, int64_t exponent, int64_t bins_per_side) {
  TORCH_CHECK(x.numel() > 0 && x.is_floating_point(), "histogram: expected floats, found ", x.scalar_type(),
              " ", x.sizes());
  TORCH_CHECK(exponent >= -126 && exponent <= 127 && bins_per_side >= 1 && bins_per_side <= 1 << 20,
              "histogram: ", bins_per_side, " bins of width 2^", exponent);
  const at::Tensor rows = x.dim() == 2 ? x : x.reshape({-1, x.dim() > 0 ? x.size(-1) : 1});
  static const Operator<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, int64_t, int64_t)> op(
      "slim::histogram");
  const auto [counts, extremes] =
      op(rows.scalar_type() == at::kDouble ? rows.to(at::kFloat) : rows, exponent, bins_per_side);
  const at::Tensor ends = extremes.cpu();
  return {counts.cpu(), ends[0].item<double>(), ends[1].item<double>()};
}

}  // namespace slim::ops

TORCH_LIBRARY(slim, m) {
  m.def("gram_(Tensor(a!) acc, Tensor x) -> ()");
  m.def(
      "channel_moments_(Tensor(a!) sum_abs, Tensor(b!) sum_square, Tensor(c!) min, Tensor(d!) max, Tensor x) "
      "-> ()");
  m.def("histogram(Tensor x, int exponent, int bins_per_side) -> (Tensor counts, Tensor extremes)");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("gram_", slim::ops::gram_reference);
  m.impl("channel_moments_", slim::ops::channel_moments_reference);
  m.impl("histogram", slim::ops::histogram_reference);
}
