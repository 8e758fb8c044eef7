#include "common/transformer.hpp"

#include <ATen/ATen.h>

namespace slim::model {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const auto wide = x.to(at::kFloat);
  const auto scaled = wide * at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + epsilon);
  return weight * scaled.to(x.scalar_type());
}

}  // namespace slim::model
