#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

namespace slim::ops {

/// The operator's typed handle. Look it up once: `static const auto op = find<...>("slim::gram_")`.
template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using OptionalTensor = std::optional<at::Tensor>;
inline OptionalTensor optional(const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }
inline at::Tensor defined_or_empty(const OptionalTensor& tensor) { return tensor ? *tensor : at::Tensor(); }

}  // namespace slim::ops
