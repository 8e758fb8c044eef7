#include "output_error.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace slim::awq {

ops::Rounding rounding_by_rows(const QuantArgs& args, int64_t in, at::ScalarType scale_dtype) {
  const int64_t unit = args.granularity == Granularity::kGroup ? args.group_size : in;
  return {1, unit, args.bits, args.type == NumberType::kFloat, args.symmetric, scale_dtype};
}

std::optional<OutputError> OutputError::from(const Gram* gram, const ActivationRows* rows) {
  OutputError error;
  const bool has_gram = gram && gram->tokens > 0;
  if (rows && rows->tokens > 0) {
    at::Tensor kept = rows->rows();
    if (!has_gram || kept.size(0) < gram->sum().size(0)) {
      error.rows_ = kept;
      error.tokens_ = rows->tokens;
      error.divisor_ = static_cast<double>(kept.size(0));
      return error;
    }
  }
  if (!has_gram) return std::nullopt;
  error.gram_ = gram->sum();
  error.tokens_ = error.divisor_ = gram->tokens;
  return error;
}

double OutputError::operator()(const at::Tensor& delta) const {
  constexpr int64_t kSliceElements = int64_t{16} << 20;  // the products stay small beside the weight
  const at::Tensor x = gram_.defined() ? gram_.to(delta.device()) : rows_.to(delta.device(), at::kFloat).t();
  const int64_t slice = std::max<int64_t>(1, kSliceElements / std::max(x.size(0), x.size(1)));
  double sum = 0;
  for (int64_t begin = 0; begin < delta.size(0); begin += slice) {
    const at::Tensor rows = delta.narrow(0, begin, std::min(slice, delta.size(0) - begin));
    at::Tensor product = at::matmul(rows, x);
    sum += (gram_.defined() ? product.mul_(rows) : product.square_()).sum(at::kDouble).item<double>();
  }
  return sum / divisor_;
}

at::Tensor OutputError::of_scales(const at::Tensor& weight, const at::Tensor& scales,
                                  const ops::Rounding& rounding, const ops::RangeSearch& search) const {
  const auto beside = [&](const at::Tensor& x) { return x.defined() ? x.to(weight.device()) : x; };
  return ops::scale_losses(weight, scales, beside(gram_), beside(rows_), rounding, search) / divisor_;
}

at::Tensor OutputError::mean_square() const {
  const at::Tensor sum = gram_.defined() ? gram_.diagonal() : rows_.to(at::kFloat).square().sum(0);
  return sum / divisor_;
}

at::Tensor OutputError::diagonal_blocks(int64_t size) const {
  if (gram_.defined()) {
    const int64_t blocks = gram_.size(0) / size;
    return gram_.view({blocks, size, blocks, size}).diagonal(0, 0, 2).permute({2, 0, 1}) / divisor_;
  }
  const at::Tensor x =
      rows_.to(at::kFloat).view({rows_.size(0), -1, size}).transpose(0, 1);  // [blocks, kept, size]
  return at::bmm(x.transpose(1, 2), x).div_(divisor_);
}

GroupErrors::GroupErrors(const OutputError& error, at::Tensor delta, int64_t size)
    : delta_(std::move(delta)), size_(size), divisor_(error.divisor_) {
  if (error.gram_.defined()) {
    gram_ = error.gram_.to(delta_.device());
    return;
  }
  inputs_ = error.rows_.to(delta_.device());
  outputs_ = at::zeros({delta_.size(0), inputs_.size(0)}, delta_.options());
  for (int64_t group = 0; group * size_ < delta_.size(1); ++group)
    outputs_.addmm_(of(group), inputs_of(group).t());
}

at::Tensor GroupErrors::inputs_of(int64_t group) const {
  return inputs_.narrow(1, group * size_, size_).to(at::kFloat);
}

at::Tensor GroupErrors::coupling(int64_t group, const at::Tensor& block) const {
  at::Tensor all = gram_.defined() ? at::mm(delta_, gram_.narrow(1, group * size_, size_))
                                   : at::mm(outputs_, inputs_of(group));
  return all.div_(divisor_).addmm_(of(group), block, 1, -1);
}

void GroupErrors::replace(int64_t group, const at::Tensor& delta) {
  if (outputs_.defined()) outputs_.addmm_(delta - of(group), inputs_of(group).t());
  of(group).copy_(delta);
}

}  // namespace slim::awq
