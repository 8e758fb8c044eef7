#include "slim/feedback.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "slim/ops.hpp"
#include "slim/statistic.hpp"

namespace slim::quant {
namespace {

/// Columns whose errors are collected before the columns after them are compensated by one matrix product.
constexpr int64_t kPanel = 128;

// ---- the factor -------------------------------------------------------------------------------------------------------

/// Indices along the last axis by descending key; equal keys keep their order.
at::Tensor descending(const at::Tensor& key) {
  return std::get<1>(at::sort(key, /*stable=*/true, /*dim=*/-1, /*descending=*/true));
}

at::Tensor sweep_order(const at::Tensor& mean_square, SweepOrder order, int64_t group_size) {
  if (order == SweepOrder::kStored) return {};
  if (order == SweepOrder::kSalience) return descending(mean_square);
  const at::Tensor grouped = mean_square.reshape({-1, group_size});
  const at::Tensor inside = descending(grouped);
  const at::Tensor first = at::arange(grouped.size(0), inside.options()).unsqueeze(1).mul_(group_size);
  return (inside + first).index_select(0, descending(grouped.amax(1))).reshape({-1});
}

struct Rung {
  const char* note;
  at::ScalarType precision;
  bool toward_diagonal;
};
constexpr Rung kLadder[] = {{"", at::kFloat, false},
                            {"factorized in fp64", at::kDouble, false},
                            {"factorized half way to the diagonal", at::kDouble, true}};

/// E[x xᵀ] ready for `rung`; channels without any signal get a diagonal of their own.
at::Tensor damped(const at::Tensor& mean, const Rung& rung, double damp) {
  at::Tensor hessian = mean.to(rung.precision, /*non_blocking=*/false, /*copy=*/true);
  at::Tensor diagonal = hessian.diagonal();
  const at::Tensor level = diagonal.mean();
  diagonal.copy_(at::where(diagonal > 0, diagonal, level));
  if (rung.toward_diagonal) {
    const at::Tensor kept = diagonal.clone();
    hessian.mul_(0.5);
    diagonal.copy_(kept);
  }
  diagonal.add_(level, damp);
  return hessian;
}

/// Climbs the ladder; an empty tensor if no step gives a factor.
at::Tensor climb(const at::Tensor& mean, double damp, Notes& notes, const std::string& name) {
  for (const Rung& rung : kLadder) {
    const auto factor = inverse_factor(damped(mean, rung, damp));
    if (!factor) continue;
    if (*rung.note) notes.note(rung.note, name, "its Gram matrix has no usable factor otherwise; more samples help");
    return factor->to(at::kFloat);
  }
  return at::empty({0, 0}, mean.options());
}

// ---- the sweep --------------------------------------------------------------------------------------------------------


/// Goes through the columns of one request, panel by panel.
class ColumnSweep {
 public:
  explicit ColumnSweep(SweepRequest request) : request_(std::move(request)), columns_(request_.weight.size(1)) {
    const at::Tensor& order = request_.factor.order;
    weight_ = (order.defined() ? request_.weight.index_select(1, order) : request_.weight).contiguous();
    errors_ = at::empty({weight_.size(0), kPanel}, weight_.options());
    if (!request_.args) return;
    codes_ = at::empty(weight_.sizes(), weight_.options().dtype(at::kChar));
    group_ = order.defined() ? request_.group.index_select(0, order) : request_.group;
    scale_ = request_.params.scale.to(at::kFloat).contiguous();
    if (request_.params.zero.defined()) zero_ = request_.params.zero.to(at::kFloat).contiguous();
    if (request_.find_params) find_runs();
  }

  Result<Swept> run() {
    for (int64_t begin = 0; begin < columns_;) {
      const int64_t end = panel_end(begin);
      at::Tensor errors = errors_.narrow(1, 0, end - begin);
      SLIM_TRY(sweep_panel(begin, end, errors));
      compensate(errors, begin, end, columns_);
      begin = end;
    }
    return in_stored_order();
  }

 private:
  /// Where the groups begin in the sweep, and its end.
  void find_runs() {
    const at::Tensor host = group_.cpu();
    const int32_t* group = host.const_data_ptr<int32_t>();
    for (int64_t c = 0; c < columns_; ++c) {
      if (c == 0 || group[c] != group[c - 1]) run_begin_.push_back(c);
    }
    run_begin_.push_back(columns_);
  }

  /// The end of the piece that starts at `begin`: whole groups where their ranges are still to be found, else a panel.
  int64_t panel_end(int64_t begin) const {
    const int64_t of = request_.sparsity ? request_.sparsity->of : 1;
    const int64_t full = std::min(begin + kPanel / of * of, columns_);
    if (run_begin_.empty()) return full;
    const auto after = std::upper_bound(run_begin_.begin(), run_begin_.end(), full);
    const int64_t last_group_end = *(after - 1);
    if (last_group_end > begin) return last_group_end;
    return std::min(full, *std::upper_bound(run_begin_.begin(), run_begin_.end(), begin));
  }

  Status sweep_panel(int64_t begin, int64_t end, at::Tensor& errors) {
    for (int64_t piece = begin; piece < end;) {
      int64_t piece_end = end;
      if (!run_begin_.empty()) {
        const auto next = std::upper_bound(run_begin_.begin(), run_begin_.end(), piece);
        piece_end = std::min(end, *next);
        if (*(next - 1) == piece) SLIM_TRY(find_params(piece, *next));
      }
      sweep_piece(piece, piece_end, errors.narrow(1, piece - begin, piece_end - piece));
      compensate(errors.narrow(1, piece - begin, piece_end - piece), piece, piece_end, end);
      piece = piece_end;
    }
    return {};
  }

  Status find_params(int64_t begin, int64_t end) {
    SweepGroup group;
    group.weight = weight_.narrow(1, begin, end - begin);
    group.factor = factor(begin, end, begin, end);
    if (request_.factor.order.defined()) group.channels = request_.factor.order.narrow(0, begin, end - begin);
    group.begin = begin;
    SLIM_ASSIGN(const Params params, request_.find_params(group));
    const int64_t column = group_[begin].item<int32_t>();
    scale_.narrow(1, column, 1).copy_(params.scale);
    if (zero_.defined()) zero_.narrow(1, column, 1).copy_(params.zero);
    return {};
  }

  void sweep_piece(int64_t begin, int64_t end, const at::Tensor& errors) {
    const auto optional = [](const at::Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
    const int64_t size = end - begin;
    const Sparsity none{0, 0}, sparsity = request_.sparsity.value_or(none);
    ops::column_sweep_(weight_.narrow(1, begin, size), errors, codes_.defined() ? codes_.narrow(1, begin, size) : codes_,
                       factor(begin, end, begin, end), optional(scale_), optional(zero_),
                       group_.defined() ? std::optional(group_.narrow(0, begin, size)) : std::nullopt,
                       request_.args ? request_.args->min_code() : 0, request_.args ? request_.args->max_code() : 0, sparsity.keep,
                       sparsity.of);
  }

  /// Columns [end, last) take up the errors of [begin, end).
  void compensate(const at::Tensor& errors, int64_t begin, int64_t end, int64_t last) {
    if (end == last) return;
    weight_.narrow(1, end, last - end).addmm_(errors, factor(begin, end, end, last), 1, -1);
  }

  at::Tensor factor(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    return request_.factor.upper.narrow(0, row, row_end - row).narrow(1, column, column_end - column);
  }

  Swept in_stored_order() {
    Swept result{weight_, codes_, request_.params};
    if (request_.find_params) {
      result.params.scale = scale_.to(request_.params.scale.scalar_type());
      if (zero_.defined()) result.params.zero = zero_.to(request_.params.zero.scalar_type());
    }
    if (!request_.factor.order.defined()) return result;
    const at::Tensor back = at::argsort(request_.factor.order);
    result.weight = weight_.index_select(1, back);
    if (codes_.defined()) result.codes = codes_.index_select(1, back);
    return result;
  }

  SweepRequest request_;
  int64_t columns_;
  at::Tensor weight_, codes_, group_;  // in the order of the sweep
  at::Tensor errors_, scale_, zero_;   // fp32; params [out, groups]
  std::vector<int64_t> run_begin_;
};

}  // namespace

std::optional<at::Tensor> inverse_factor(const at::Tensor& hessian) {
  const auto [lower, info] = at::linalg_cholesky_ex(hessian.flip({0, 1}));
  if (info.item<int>() != 0) return std::nullopt;
  const at::Tensor pivots = lower.diagonal().square() / hessian.diagonal().flip({0});
  const bool single = hessian.scalar_type() == at::kFloat;
  const double epsilon = single ? std::numeric_limits<float>::epsilon() : std::numeric_limits<double>::epsilon();
  const double least = 10 * epsilon * std::sqrt(static_cast<double>(hessian.size(0)));
  if (!(pivots > least).all().item<bool>()) return std::nullopt;
  const at::Tensor identity = at::eye(hessian.size(0), hessian.options());
  at::Tensor upper = at::linalg_solve_triangular(lower, identity, /*upper=*/false).flip({0, 1});
  if (!at::isfinite(upper).all().item<bool>()) return std::nullopt;
  return upper;
}

Result<std::optional<InputFactor>> input_factor(LayerContext& context, std::string_view fallback, double damp, SweepOrder order,
                                                int64_t group_size) {
  const std::string& name = context.layer().name;
  const auto* gram = context.statistic<Gram>();
  if (!gram || gram->tokens <= 0) {
    context.notes().note(fallback, name, "no calibration token reached this layer");
    return std::optional<InputFactor>();
  }
  const std::string key = "slim.factor " + std::to_string(static_cast<int>(order)) + " " +
                          std::to_string(order == SweepOrder::kGroupAware ? group_size : 0) + " " + std::to_string(damp);
  at::Tensor& upper = context.port_cache()[key];
  at::Tensor& places = context.port_cache()[key + " order"];
  if (!upper.defined()) {
    at::Tensor mean = gram->mean();
    if (!at::isfinite(mean).all().item<bool>()) return Status(Code::kNumeric, name + ": its activations hold NaN or Inf");
    places = sweep_order(mean.diagonal(), order, group_size);
    if (places.defined()) mean = mean.index_select(0, places).index_select(1, places);
    upper = climb(mean, damp, context.notes(), name);
  }
  if (upper.numel() == 0) {
    context.notes().note(fallback, name, "its activations are zero");
    return std::optional<InputFactor>();
  }
  return std::optional(InputFactor{upper, places});
}

Result<Swept> sweep(SweepRequest request) { return ColumnSweep(std::move(request)).run(); }

at::Tensor row_errors(const at::Tensor& delta, const at::Tensor& hessian) {
  constexpr int64_t kBlock = 1024;
  // H is symmetric: columns after a block count twice, those before it not again.
  at::Tensor errors = at::zeros({delta.size(0)}, delta.options());
  for (int64_t begin = 0; begin < delta.size(1); begin += kBlock) {
    const int64_t size = std::min(kBlock, delta.size(1) - begin), rest = delta.size(1) - begin - size;
    const at::Tensor mine = delta.narrow(1, begin, size);
    at::Tensor product = at::mm(mine, hessian.narrow(0, begin, size).narrow(1, begin, size));
    if (rest > 0) {
      product.addmm_(delta.narrow(1, begin + size, rest), hessian.narrow(0, begin + size, rest).narrow(1, begin, size), 1, 2);
    }
    errors.add_(product.mul_(mine).sum(1));
  }
  return errors;
}

}  // namespace slim::quant
