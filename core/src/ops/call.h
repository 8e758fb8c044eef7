#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <utility>

#include "slim/ops.hpp"

namespace slim::ops {

/// An operator by its name. Make it once: `static const Operator<...> op("slim::gram_")`.
template <class Signature>
class Operator;
template <class Result, class... Parameters>
class Operator<Result(Parameters...)> {
 public:
  explicit Operator(const char* name)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Result(Parameters...)>()) {}

  Result operator()(Parameters... arguments) const {
    if (!reference_forced()) return handle_.call(std::forward<Parameters>(arguments)...);
    // No backend registers kernels for Meta, so that its entry is the reference, which works for any device.
    return handle_.redispatch(c10::DispatchKeySet(c10::DispatchKey::Meta),
                              std::forward<Parameters>(arguments)...);
  }

 private:
  c10::TypedOperatorHandle<Result(Parameters...)> handle_;
};

using OptionalTensor = std::optional<at::Tensor>;
inline OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}
inline at::Tensor defined_or_empty(const OptionalTensor& tensor) { return tensor ? *tensor : at::Tensor(); }

}  // namespace slim::ops
