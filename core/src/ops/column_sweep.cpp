#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "ops/call.h"
#include "slim/ops.hpp"
#include "slim/parallel.hpp"

namespace slim::ops {
namespace {

/// Rows are the vector dimension: a tile holds this many rows, column by column, so that every step below is the same
/// arithmetic on kLanes consecutive floats, and one entry of the factor serves all of them from a register.
constexpr int64_t kLanes = 32;
constexpr int64_t kMaxRun = 64;

using Lanes = std::array<float, kLanes>;

/// Everything that the tiles share.
struct Sweep {
  const float* factor = nullptr;  // transposed: row i holds U_0i .. U_ii
  const float* scale = nullptr;   // null: nothing is rounded
  const float* zero = nullptr;    // null: 0
  const int32_t* group = nullptr;
  int64_t columns = 0, scale_stride = 0, zero_stride = 0;
  float min_code = 0, max_code = 0;
  int64_t keep = 0, of = 0;
};

/// |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction, and rounds ties to even.
inline float round_even(float x) {
  constexpr float kShift = 12582912.0F;
  return (x + kShift) - kShift;
}

/// One tile of rows, in the columns' order.
class Tile {
 public:
  explicit Tile(const Sweep& sweep)
      : sweep_(sweep),
        weight_(size(sweep)),
        error_(size(sweep)),
        code_(size(sweep)),
        groups_(group_count(sweep)),
        scale_(groups_),
        zero_(groups_) {}

  void load(const float* weight, int64_t stride, int64_t first_row, int64_t rows) {
    for (int64_t r = 0; r < kLanes; ++r) {
      const int64_t row = std::min(r, rows - 1);  // lanes beyond the last row repeat it
      for (size_t c = 0; c < weight_.size(); ++c)
        weight_[c][r] = weight[row * stride + static_cast<int64_t>(c)];
      for (size_t g = 0; g < groups_; ++g) {
        const auto at = static_cast<int64_t>(g);
        scale_[g][r] = sweep_.scale[(first_row + row) * sweep_.scale_stride + at];
        zero_[g][r] = sweep_.zero ? sweep_.zero[(first_row + row) * sweep_.zero_stride + at] : 0.0F;
      }
    }
  }

  void run() {
    const int64_t step = sweep_.of > 0 ? sweep_.of : 1;
    for (int64_t begin = 0; begin < sweep_.columns; begin += step) {
      const int64_t end = std::min(begin + step, sweep_.columns);
      for (int64_t i = begin; i < end; ++i) subtract_errors(i, 0, begin);
      if (sweep_.of > 0) choose_kept(begin, end);
      for (int64_t i = begin; i < end; ++i) {
        subtract_errors(i, begin, i);
        settle(i, sweep_.of > 0 ? kept_[static_cast<size_t>(i - begin)] : all_kept());
      }
    }
  }

  void store(float* weight, float* errors, int8_t* codes, int64_t weight_stride, int64_t error_stride,
             int64_t code_stride, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < weight_.size(); ++c) {
        const auto at = static_cast<int64_t>(c);
        weight[r * weight_stride + at] = weight_[c][r];
        errors[r * error_stride + at] = error_[c][r];
        if (sweep_.scale) codes[r * code_stride + at] = static_cast<int8_t>(code_[c][r]);
      }
    }
  }

 private:
  static size_t size(const Sweep& sweep) { return static_cast<size_t>(sweep.columns); }
  static size_t group_count(const Sweep& sweep) {
    return sweep.scale ? static_cast<size_t>(*std::max_element(sweep.group, sweep.group + sweep.columns)) + 1
                       : 0;
  }
  static const Lanes& all_kept() {
    static const Lanes ones = [] {
      Lanes lanes;
      lanes.fill(1);
      return lanes;
    }();
    return ones;
  }

  /// w_i -= Σ e_k U_ki over the columns k in [from, to).
  void subtract_errors(int64_t i, int64_t from, int64_t to) {
    Lanes w = weight_[static_cast<size_t>(i)];
    const float* factor = sweep_.factor + i * sweep_.columns;
    for (int64_t k = from; k < to; ++k) {
      const Lanes& error = error_[static_cast<size_t>(k)];
      const float u = factor[k];
      for (int64_t r = 0; r < kLanes; ++r) w[r] -= error[r] * u;
    }
    weight_[static_cast<size_t>(i)] = w;
  }

  void choose_kept(int64_t begin, int64_t end) {
    const auto run = static_cast<size_t>(end - begin);
    for (size_t c = 0; c < run; ++c) {
      const int64_t i = begin + static_cast<int64_t>(c);
      const float u = sweep_.factor[i * sweep_.columns + i];
      for (int64_t r = 0; r < kLanes; ++r) {
        const float w = weight_[static_cast<size_t>(i)][r] / u;
        salience_[c][r] = w * w;
      }
    }
    for (size_t c = 0; c < run; ++c) {  // kept: fewer than `keep` columns rank before it
      Lanes rank{};
      for (size_t other = 0; other < run; ++other) {
        const bool wins_ties = other < c;
        for (int64_t r = 0; r < kLanes; ++r) {
          const float mine = salience_[c][r], its = salience_[other][r];
          rank[r] += its > mine || (wins_ties && its == mine) ? 1.0F : 0.0F;
        }
      }
      for (int64_t r = 0; r < kLanes; ++r)
        kept_[c][r] = rank[r] < static_cast<float>(sweep_.keep) ? 1.0F : 0.0F;
    }
  }

  /// Gives column i its final value, and remembers what that costs the columns after it.
  void settle(int64_t i, const Lanes& kept) {
    Lanes& w = weight_[static_cast<size_t>(i)];
    Lanes& error = error_[static_cast<size_t>(i)];
    const float u = sweep_.factor[i * sweep_.columns + i];
    Lanes value = w;
    if (sweep_.scale) {
      const auto g = static_cast<size_t>(sweep_.group[i]);
      const Lanes &scale = scale_[g], &zero = zero_[g];
      Lanes& code = code_[static_cast<size_t>(i)];
      for (int64_t r = 0; r < kLanes; ++r) {
        const float scaled = w[r] / scale[r] + zero[r];
        const float rounded = round_even(std::min(std::max(scaled, sweep_.min_code), sweep_.max_code));
        code[r] = kept[r] != 0 ? rounded : zero[r];
        value[r] = (code[r] - zero[r]) * scale[r];
      }
    } else {
      for (int64_t r = 0; r < kLanes; ++r) value[r] = kept[r] != 0 ? w[r] : 0.0F;
    }
    for (int64_t r = 0; r < kLanes; ++r) error[r] = (w[r] - value[r]) / u;
    w = value;
  }

  const Sweep& sweep_;
  std::vector<Lanes> weight_, error_, code_;  // by column
  size_t groups_;
  std::vector<Lanes> scale_, zero_;  // by group
  std::array<Lanes, kMaxRun> salience_, kept_;
};

void check_column_sweep(const at::Tensor& weight, const at::Tensor& errors, const at::Tensor& codes,
                        const at::Tensor& factor, const at::Tensor& scale, const at::Tensor& zero,
                        const at::Tensor& group, int64_t keep, int64_t of) {
  TORCH_CHECK(weight.dim() == 2 && errors.sizes() == weight.sizes() && weight.scalar_type() == at::kFloat &&
                  errors.scalar_type() == at::kFloat && weight.stride(1) == 1 && errors.stride(1) == 1,
              "column_sweep_: weight and errors are fp32 matrices of one shape with unit column stride");
  TORCH_CHECK(factor.dim() == 2 && factor.size(0) == weight.size(1) && factor.size(1) == weight.size(1) &&
                  factor.scalar_type() == at::kFloat,
              "column_sweep_: factor is fp32 [columns, columns]");
  TORCH_CHECK(of == 0 || (of <= kMaxRun && keep >= 1 && keep < of), "column_sweep_: keep ", keep, " of ", of);
  if (!scale.defined()) return;
  TORCH_CHECK(codes.sizes() == weight.sizes() && codes.scalar_type() == at::kChar && codes.stride(1) == 1,
              "column_sweep_: codes are int8 of weight's shape");
  TORCH_CHECK(scale.dim() == 2 && scale.size(0) == weight.size(0) && scale.scalar_type() == at::kFloat &&
                  (!zero.defined() || (zero.sizes() == scale.sizes() && zero.scalar_type() == at::kFloat)),
              "column_sweep_: scale and zero are fp32 [rows, groups]");
  TORCH_CHECK(group.defined() && group.dim() == 1 && group.size(0) == weight.size(1) &&
                  group.scalar_type() == at::kInt,
              "column_sweep_: group is int32 [columns]");
}

/// Any device: the work is done on the host.
void column_sweep_reference(at::Tensor weight, at::Tensor errors, at::Tensor codes, const at::Tensor& factor,
                            const std::optional<at::Tensor>& maybe_scale,
                            const std::optional<at::Tensor>& maybe_zero,
                            const std::optional<at::Tensor>& maybe_group, int64_t min_code, int64_t max_code,
                            int64_t keep, int64_t of) {
  const at::Tensor scale = defined_or_empty(maybe_scale), zero = defined_or_empty(maybe_zero),
                   group = defined_or_empty(maybe_group);
  if (weight.numel() == 0) return;
  if (!weight.device().is_cpu()) {
    at::Tensor host_weight = weight.cpu(), host_errors = at::empty_like(host_weight);
    at::Tensor host_codes = scale.defined() ? at::empty(weight.sizes(), at::kChar) : at::Tensor();
    const auto on_host = [](const at::Tensor& x) { return x.defined() ? x.cpu() : x; };
    column_sweep_reference(host_weight, host_errors, host_codes, factor.cpu(), on_host(scale), on_host(zero),
                           on_host(group), min_code, max_code, keep, of);
    weight.copy_(host_weight);
    errors.copy_(host_errors);
    if (scale.defined()) codes.copy_(host_codes);
    return;
  }
  const at::Tensor transposed = factor.t().contiguous();
  // Only the groups that the block uses: their scales then lie together.
  at::Tensor used_scale, used_zero, used_group;
  Sweep sweep;
  if (scale.defined()) {
    const int64_t first = group.min().item<int64_t>(), count = group.max().item<int64_t>() + 1 - first;
    TORCH_CHECK(first >= 0 && first + count <= scale.size(1),
                "column_sweep_: group names a column that scale does not have");
    used_group = (group - first).to(at::kInt).contiguous();
    used_scale = scale.narrow(1, first, count).contiguous();
    sweep.group = used_group.const_data_ptr<int32_t>();
    sweep.scale = used_scale.const_data_ptr<float>();
    sweep.scale_stride = count;
    if (zero.defined()) {
      used_zero = zero.narrow(1, first, count).contiguous();
      sweep.zero = used_zero.const_data_ptr<float>();
      sweep.zero_stride = count;
    }
  }
  sweep.factor = transposed.const_data_ptr<float>();
  sweep.columns = weight.size(1);
  sweep.min_code = static_cast<float>(min_code);
  sweep.max_code = static_cast<float>(max_code);
  sweep.keep = keep;
  sweep.of = of;
  float* const weights = weight.mutable_data_ptr<float>();
  float* const error = errors.mutable_data_ptr<float>();
  int8_t* const code = scale.defined() ? codes.mutable_data_ptr<int8_t>() : nullptr;
  const int64_t rows = weight.size(0), code_stride = scale.defined() ? codes.stride(0) : 0;
  parallel_for(0, (rows + kLanes - 1) / kLanes, 1, [&](int64_t first, int64_t last) {
    Tile tile(sweep);
    for (int64_t t = first; t < last; ++t) {
      const int64_t row = t * kLanes, count = std::min(kLanes, rows - row);
      tile.load(weights + row * weight.stride(0), weight.stride(0), row, count);
      tile.run();
      tile.store(weights + row * weight.stride(0), error + row * errors.stride(0), code + row * code_stride,
                 weight.stride(0), errors.stride(0), code_stride, count);
    }
  });
}

using Signature = void(at::Tensor, at::Tensor, at::Tensor, const at::Tensor&,
                       const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                       const std::optional<at::Tensor>&, int64_t, int64_t, int64_t, int64_t);

}  // namespace

void column_sweep_(at::Tensor weight, at::Tensor errors, at::Tensor codes, const at::Tensor& factor,
                   const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& zero,
                   const std::optional<at::Tensor>& group, int64_t min_code, int64_t max_code, int64_t keep,
                   int64_t of) {
  check_column_sweep(weight, errors, codes, factor, defined_or_empty(scale), defined_or_empty(zero),
                     defined_or_empty(group), keep, of);
  static const Operator<Signature> op("slim::column_sweep_");
  op(std::move(weight), std::move(errors), std::move(codes), factor, scale, zero, group, min_code, max_code,
     keep, of);
}

}  // namespace slim::ops

TORCH_LIBRARY_FRAGMENT(slim, m) {
  m.def(
      "column_sweep_(Tensor(a!) weight, Tensor(b!) errors, Tensor(c!) codes, Tensor factor, Tensor? scale, "
      "Tensor? zero, "
      "Tensor? group, int min_code, int max_code, int keep, int of) -> ()");
}

TORCH_LIBRARY_IMPL(slim, CompositeExplicitAutograd, m) {
  m.impl("column_sweep_", slim::ops::column_sweep_reference);
}
