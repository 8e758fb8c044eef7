#include "slim/feedback.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <utility>

#include "slim/ops.hpp"
#include "slim/phase.hpp"
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

/// Where each panel of a triangle begins, and its end.
std::vector<int64_t> panel_begins(int64_t size) {
  std::vector<int64_t> begins;
  for (int64_t begin = 0; begin < size; begin += UpperTriangle::kPanelRows) begins.push_back(begin);
  begins.push_back(size);
  return begins;
}

/// E[x xᵀ] of a Gram matrix in the order of a sweep: what a factor is made of.
class Hessian {
 public:
  Hessian(const Gram& gram, at::Tensor order)
      : gram_(gram), order_(std::move(order)), begins_(panel_begins(gram.sum().size(0))) {
    diagonal_ = gram.sum().diagonal() / gram.tokens;
    if (order_.defined()) diagonal_ = diagonal_.index_select(0, order_);
  }

  /// What is added to the diagonal: damping, and for channels without any signal a diagonal of their own.
  at::Tensor added(double damp) const {
    const at::Tensor level = diagonal_.mean();
    return at::where(diagonal_ > 0, at::zeros_like(diagonal_), level).add_(level, damp);
  }

  /// Its upper half ready for `rung`.
  std::vector<at::Tensor> damped(const Rung& rung, double damp) const {
    const at::Tensor diagonal = (diagonal_ + added(damp)).to(rung.precision);
    std::vector<at::Tensor> panels;
    for (size_t i = 0; i + 1 < begins_.size(); ++i) {
      const int64_t begin = begins_[i], rows = begins_[i + 1] - begin;
      at::Tensor panel = rows_from(begin, rows).to(rung.precision);
      if (rung.toward_diagonal) panel.mul_(0.5);
      panel.diagonal().copy_(diagonal.narrow(0, begin, rows));
      panels.push_back(std::move(panel));
    }
    return panels;
  }

  bool finite() const {
    const auto [low, high] = at::aminmax(gram_.sum());  // NaN if an entry is
    return std::isfinite(low.item<double>()) && std::isfinite(high.item<double>());
  }

 private:
  /// fp32, from the diagonal on.
  at::Tensor rows_from(int64_t begin, int64_t rows) const {
    const at::Tensor& sum = gram_.sum();
    const int64_t columns = sum.size(0) - begin;
    if (!order_.defined()) return sum.narrow(0, begin, rows).narrow(1, begin, columns) / gram_.tokens;
    const at::Tensor mine = sum.index_select(0, order_.narrow(0, begin, rows));
    return mine.index_select(1, order_.narrow(0, begin, columns)).div_(gram_.tokens);
  }

  const Gram& gram_;
  at::Tensor order_, diagonal_;
  std::vector<int64_t> begins_;
};

/// The first rung of the ladder that gives a factor: its factor, and what it added to the diagonal if it did nothing else.
struct Climbed {
  UpperTriangle upper;
  at::Tensor added;
};
Climbed climb(const Hessian& hessian, double damp, Notes& notes, const std::string& name) {
  for (const Rung& rung : kLadder) {
    auto factor = inverse_factor(hessian.damped(rung, damp));
    if (!factor) continue;
    if (*rung.note)
      notes.note(rung.note, name, "its Gram matrix has no usable factor otherwise; more samples help");
    std::vector<at::Tensor> panels = factor->panels();
    factor.reset();
    for (at::Tensor& panel : panels) panel = panel.to(at::kFloat);
    return {UpperTriangle(std::move(panels)), rung.toward_diagonal ? at::Tensor() : hessian.added(damp)};
  }
  return {};
}

/// Makes H = V Vᵀ and U = V⁻¹ (V upper triangular) out of the panels of H.
class InverseFactor {
 public:
  explicit InverseFactor(std::vector<at::Tensor> panels)
      : panels_(std::move(panels)), begins_(panel_begins(panels_.front().size(1))) {
    const bool single = panels_.front().scalar_type() == at::kFloat;
    const double epsilon =
        single ? std::numeric_limits<float>::epsilon() : std::numeric_limits<double>::epsilon();
    least_pivot_ = 10 * epsilon * std::sqrt(static_cast<double>(begins_.back()));
  }

  std::optional<UpperTriangle> run() {
    for (size_t k = panels_.size(); k-- > 0;) {
      if (!factorize(k)) return std::nullopt;
    }
    for (size_t k = panels_.size(); k-- > 0;) {
      if (!invert(k)) return std::nullopt;
    }
    return UpperTriangle(std::move(panels_));
  }

 private:
  int64_t rows(size_t panel) const { return begins_[panel + 1] - begins_[panel]; }
  at::Tensor tile(size_t row, size_t column) const {
    return panels_[row].narrow(1, begins_[column] - begins_[row], rows(column));
  }
  /// Of the panel `row`, the columns after the panel `column`.
  at::Tensor after(size_t row, size_t column) const {
    return panels_[row].narrow(1, begins_[column + 1] - begins_[row], begins_.back() - begins_[column + 1]);
  }

  /// The column of V: every tile on and above the diagonal, which then holds its own inverse.
  bool factorize(size_t k) {
    at::Tensor diagonal = tile(k, k);
    const at::Tensor before = diagonal.diagonal().flip({0});
    const bool last = k + 1 == panels_.size();
    if (!last) diagonal.addmm_(after(k, k), after(k, k).t(), 1, -1);
    const auto [lower, info] = at::linalg_cholesky_ex(diagonal.flip({0, 1}));
    if (info.item<int>() != 0 || !(lower.diagonal().square() / before > least_pivot_).all().item<bool>())
      return false;
    const at::Tensor transposed = lower.flip({0, 1}).t();  // of V: lower triangular
    for (size_t i = 0; i < k; ++i) {
      at::Tensor above = tile(i, k);
      if (!last) above.addmm_(after(i, k), after(k, k).t(), 1, -1);
      above.copy_(at::linalg_solve_triangular(transposed, above, /*upper=*/false, /*left=*/false));
    }
    const at::Tensor identity = at::eye(rows(k), diagonal.options());
    diagonal.copy_(at::linalg_solve_triangular(lower, identity, /*upper=*/false).flip({0, 1}));
    return true;
  }

  /// The row of U, with those below it: U_k,after = -U_kk V_k,after U_after,after.
  bool invert(size_t k) {
    if (k + 1 < panels_.size()) {
      at::Tensor product = at::zeros(after(k, k).sizes(), panels_[k].options());
      for (size_t i = k + 1; i < panels_.size(); ++i) {
        product.narrow(1, begins_[i] - begins_[k + 1], panels_[i].size(1)).addmm_(tile(k, i), panels_[i]);
      }
      after(k, k).copy_(at::mm(tile(k, k), product).neg_());
    }
    return at::isfinite(panels_[k]).all().item<bool>();
  }

  std::vector<at::Tensor> panels_;
  std::vector<int64_t> begins_;
  double least_pivot_;
};

// ---- the sweep --------------------------------------------------------------------------------------------------------

/// Goes through the columns of one request, panel by panel.
class ColumnSweep {
 public:
  explicit ColumnSweep(SweepRequest request)
      : request_(std::move(request)), columns_(request_.weight.size(1)) {
    const at::Tensor& order = request_.factor.order;
    weight_ = (order.defined() ? request_.weight.index_select(1, order) : request_.weight).contiguous();
    request_.weight = at::Tensor();  // large: one copy is enough
    errors_ = at::empty({weight_.size(0), kPanel}, weight_.options());
    loss_ = at::zeros({weight_.size(0)}, weight_.options());
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
      loss_.add_(errors.square().sum(1));
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
    if (end - begin <= UpperTriangle::kPanelRows) group.factor = factor(begin, end, begin, end);
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
    ops::column_sweep_(weight_.narrow(1, begin, size), errors,
                       codes_.defined() ? codes_.narrow(1, begin, size) : codes_,
                       factor(begin, end, begin, end), optional(scale_), optional(zero_),
                       group_.defined() ? std::optional(group_.narrow(0, begin, size)) : std::nullopt,
                       request_.args ? request_.args->min_code() : 0,
                       request_.args ? request_.args->max_code() : 0, sparsity.keep, sparsity.of);
  }

  /// Columns [end, last) take up the errors of [begin, end).
  void compensate(const at::Tensor& errors, int64_t begin, int64_t end, int64_t last) {
    if (end == last) return;
    weight_.narrow(1, end, last - end).addmm_(errors, factor(begin, end, end, last), 1, -1);
  }

  at::Tensor factor(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    return request_.factor.upper.block(row, row_end, column, column_end);
  }

  Swept in_stored_order() {
    Swept result{weight_, codes_, request_.params, loss_};
    if (request_.find_params) {
      result.params.scale = scale_.to(request_.params.scale.scalar_type());
      if (zero_.defined()) result.params.zero = zero_.to(request_.params.zero.scalar_type());
    }
    if (!request_.factor.order.defined()) return result;
    const at::Tensor back = at::argsort(request_.factor.order);
    result.weight = std::exchange(weight_, at::Tensor()).index_select(1, back);
    if (codes_.defined()) result.codes = codes_.index_select(1, back);
    return result;
  }

  SweepRequest request_;
  int64_t columns_;
  at::Tensor weight_, codes_, group_;  // in the order of the sweep
  at::Tensor errors_, scale_, zero_;   // fp32; params [out, groups]
  at::Tensor loss_;                    // of the columns so far
  std::vector<int64_t> run_begin_;
};

}  // namespace

FactorObserver::~FactorObserver() = default;

void observe_factor(Observations& observations, PortId port, int64_t features) {
  observations.want<Gram>(port, features);
  if (auto* observer = dynamic_cast<FactorObserver*>(&observations)) observer->expect_factor(port);
}

at::Tensor UpperTriangle::block(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
  const auto from = [&](int64_t first_row, int64_t last_row, int64_t first_column) {
    const int64_t panel = first_row / kPanelRows, begin = panel * kPanelRows;
    const at::Tensor rows =
        panels_[static_cast<size_t>(panel)].narrow(0, first_row - begin, last_row - first_row);
    return rows.narrow(1, first_column - begin, column_end - first_column);
  };
  const int64_t begin = row / kPanelRows * kPanelRows;
  if (column >= begin && row_end <= begin + kPanelRows) return from(row, row_end, column);
  at::Tensor whole = at::zeros({row_end - row, column_end - column}, panels_.front().options());
  for (int64_t first = row; first < row_end;) {
    const int64_t panel = first / kPanelRows * kPanelRows, last = std::min(row_end, panel + kPanelRows);
    const int64_t stored = std::max(column, panel);
    if (stored < column_end) {
      whole.narrow(0, first - row, last - first)
          .narrow(1, stored - column, column_end - stored)
          .copy_(from(first, last, stored));
    }
    first = last;
  }
  return whole;
}

std::optional<UpperTriangle> inverse_factor(std::vector<at::Tensor> hessian) {
  return InverseFactor(std::move(hessian)).run();
}

Result<std::optional<InputFactor>> input_factor(LayerContext& context, std::string_view fallback, double damp,
                                                SweepOrder order, int64_t group_size) {
  const PhaseTimer timer(Phase::kFactor);
  const std::string& name = context.layer().name;
  const auto* gram = context.statistic<Gram>();
  if (!gram || gram->tokens <= 0) {
    context.notes().note(fallback, name, "no calibration token reached this layer");
    return std::optional<InputFactor>();
  }
  const std::string key = "slim.factor " + std::to_string(static_cast<int>(order)) + " " +
                          std::to_string(order == SweepOrder::kGroupAware ? group_size : 0) + " " +
                          std::to_string(damp);
  TensorMap& cache = context.port_cache();
  if (!cache.contains(key + " order")) {
    const at::Tensor order_of_gram = sweep_order(gram->sum().diagonal() / gram->tokens, order, group_size);
    const Hessian hessian(*gram, order_of_gram);
    if (!hessian.finite()) return Status(Code::kNumeric, name + ": its activations hold NaN or Inf");
    const Climbed made = climb(hessian, damp, context.notes(), name);
    cache[key + " order"] = order_of_gram;
    const bool sorted = order_of_gram.defined() && made.added.defined();
    cache[key + " added"] = sorted ? made.added.index_select(0, at::argsort(order_of_gram)) : made.added;
    const std::vector<at::Tensor>& panels = made.upper.panels();
    for (size_t i = 0; i < panels.size(); ++i) cache[key + " " + std::to_string(i)] = panels[i];
  }
  std::vector<at::Tensor> panels;
  for (auto found = cache.end();
       (found = cache.find(key + " " + std::to_string(panels.size()))) != cache.end();) {
    panels.push_back(found->second);
  }
  if (panels.empty()) {
    context.notes().note(fallback, name, "its activations are zero");
    return std::optional<InputFactor>();
  }
  return std::optional(
      InputFactor{UpperTriangle(std::move(panels)), cache[key + " order"], cache[key + " added"]});
}

Result<Swept> sweep(SweepRequest request) {
  const PhaseTimer timer(Phase::kSweep);
  return ColumnSweep(std::move(request)).run();
}

at::Tensor row_errors(const Swept& swept, const at::Tensor& weight, const InputFactor& factor,
                      const Gram& gram) {
  const at::Tensor delta = swept.weight - weight;
  if (!factor.added.defined()) return row_errors(delta, gram);
  return (swept.loss - at::mv(delta.square(), factor.added)).clamp_min_(0);
}

at::Tensor row_errors(const at::Tensor& delta, const Gram& gram) {
  constexpr int64_t kBlock = 1024;
  const at::Tensor& sum = gram.sum();
  const auto mean = [&](int64_t begin, int64_t rows, int64_t column, int64_t columns) {
    return (sum.narrow(0, begin, rows).narrow(1, column, columns) / gram.tokens).to(delta.device());
  };
  // H is symmetric: columns after a block count twice, those before it not again.
  at::Tensor errors = at::zeros({delta.size(0)}, delta.options());
  for (int64_t begin = 0; begin < delta.size(1); begin += kBlock) {
    const int64_t size = std::min(kBlock, delta.size(1) - begin), rest = delta.size(1) - begin - size;
    const at::Tensor mine = delta.narrow(1, begin, size);
    at::Tensor product = at::mm(mine, mean(begin, size, begin, size));
    if (rest > 0)
      product.addmm_(delta.narrow(1, begin + size, rest), mean(begin + size, rest, begin, size), 1, 2);
    errors.add_(product.mul_(mine).sum(1));
  }
  return errors;
}

}  // namespace slim::quant
