#pragma once
#include <exception>
#include <new>
#include <string>

#include "slim/adapter.hpp"
#include "slim/status.hpp"

namespace slim {

/// The Status of the exception being handled: out of memory, an ExecError's own, or the text of anything else.
SLIM_API Status current_exception_status();

/// Calls into a plugin: whatever it throws becomes a Status led by `where` ("awq: model.layers.7"). fn returns Status or
/// Result<T>. Every virtual call of a plugin's object passes here and nowhere else.
template <class Fn>
auto guarded(const std::string& where, Fn&& fn) -> decltype(fn()) {
  try {
    auto result = fn();
    if (result.ok()) return result;
    if constexpr (std::is_same_v<decltype(result), Status>) {
      return std::move(result).in(where);
    } else {
      return result.status().in(where);
    }
  } catch (...) {
    return current_exception_status().in(where);
  }
}

}  // namespace slim
