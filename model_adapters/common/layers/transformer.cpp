#include "common/layers/transformer.hpp"

#include <ATen/ATen.h>

namespace slim::model {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const auto wide = x.to(at::kFloat);
  const auto scaled = wide * at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + epsilon);
  return weight * scaled.to(x.scalar_type());
}

Result<Activation> activation(std::string_view name) {
  static constexpr std::pair<std::string_view, Activation> kKnown[] = {
      {"silu", [](const at::Tensor& x) { return at::silu(x); }},
      {"gelu", [](const at::Tensor& x) { return at::gelu(x); }},
      {"gelu_pytorch_tanh", [](const at::Tensor& x) { return at::gelu(x, "tanh"); }},
      {"quick_gelu", [](const at::Tensor& x) { return x * at::sigmoid(1.702 * x); }},
      {"relu", [](const at::Tensor& x) { return at::relu(x); }},
  };
  std::string known;
  for (const auto& [key, function] : kKnown) {
    if (key == name) return function;
    known += (known.empty() ? "" : ", ") + std::string(key);
  }
  return Status(Code::kUnsupported,
                "config.json: hidden_act is \"" + std::string(name) + "\", expected one of " + known);
}

}  // namespace slim::model
