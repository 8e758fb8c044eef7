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

OutputError::Accumulated OutputError::accumulated_for(const at::Tensor& weight, int64_t group) const {
  Accumulated errors;
  errors.group_ = group;
  errors.divisor_ = divisor_;
  if (gram_.defined()) {
    errors.gram_ = gram_.to(weight.device());
    errors.deltas_ = at::empty_like(weight, at::MemoryFormat::Contiguous);
  } else {
    errors.inputs_ = rows_.to(weight.device());
    errors.outputs_ = at::zeros({weight.size(0), rows_.size(0)}, weight.options());
  }
  return errors;
}

at::Tensor OutputError::Accumulated::coupling(int64_t begin) const {
  if (inputs_.defined()) return at::mm(outputs_, inputs_of(begin)).div_(divisor_);
  if (begin == 0) return at::zeros({deltas_.size(0), group_}, deltas_.options());
  return at::mm(deltas_.narrow(1, 0, begin), gram_.narrow(0, 0, begin).narrow(1, begin, group_)).div_(divisor_);
}

at::Tensor OutputError::Accumulated::inputs_of(int64_t begin) const {
  return inputs_.narrow(1, begin, group_).to(at::kFloat);
}

void OutputError::Accumulated::add(int64_t begin, const at::Tensor& delta) {
  if (inputs_.defined()) {
    outputs_.addmm_(delta, inputs_of(begin).t());
  } else {
    deltas_.narrow(1, begin, group_).copy_(delta);
  }
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

}  // namespace slim::awq
