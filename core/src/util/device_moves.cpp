#include "util/device_moves.h"

#include <ATen/ATen.h>

namespace slim {

at::Tensor moved(const at::Tensor& tensor, at::Device device) {
  return tensor.defined() ? tensor.to(device) : tensor;
}

TensorMap moved(TensorMap tensors, at::Device device) {
  for (auto& [name, tensor] : tensors) tensor = moved(tensor, device);
  return tensors;
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
