#include "run/device_moves.h"

#include <ATen/ATen.h>

namespace slim {

at::Tensor moved(const at::Tensor& tensor, at::Device device) {
  return tensor.defined() ? tensor.to(device) : tensor;
}

TensorMap moved(TensorMap tensors, at::Device device) {
  for (auto& [name, tensor] : tensors) tensor = moved(tensor, device);
  return tensors;
}

BlockWeights moved(BlockWeights weights, at::Device device) {
  for (at::Tensor& tensor : weights.weight) tensor = moved(tensor, device);
  for (at::Tensor& tensor : weights.bias) tensor = moved(tensor, device);
  for (auto& activation : weights.activation) {
    if (!activation) continue;
    activation->scale = moved(activation->scale, device);
    activation->zero = moved(activation->zero, device);
  }
  weights.params = moved(std::move(weights.params), device);
  return weights;
}

Solved moved(Solved solved, at::Device device) {
  if (auto* quantized = std::get_if<Quantized>(&solved.weight)) {
    for (at::Tensor* tensor :
         {&quantized->codes, &quantized->scale, &quantized->zero, &quantized->group_index})
      *tensor = moved(*tensor, device);
  } else {
    at::Tensor& weight = std::get<Dense>(solved.weight).weight;
    weight = moved(weight, device);
  }
  for (at::Tensor* tensor : {&solved.bias, &solved.input_scale, &solved.input_zero})
    *tensor = moved(*tensor, device);
  solved.extra = moved(std::move(solved.extra), device);
  return solved;
}

Carry carry_on(const Carry& carry, at::Device device) {
  Carry there = carry;
  for (auto& [name, tensor] : there) {
    if (device.is_cpu() || (tensor.defined() && tensor.is_floating_point())) tensor = moved(tensor, device);
  }
  return there;
}

}  // namespace slim
