#pragma once
#include <exception>
#include <new>
#include <string>

#include "slim/adapter.hpp"
#include "slim/status.hpp"

namespace slim {

/// The Status of the exception being handled: out of memory, an ExecError's own, or the text of anything else.
SLIM_API Status current_exception_status();

/// The error led by `where`. What `where` ends with ("awq: model.layers.7") is not said twice if the error begins with it.
SLIM_API Status led_by(const std::string& where, const Status&);

/// Says what this thread is calling while it lives: for the last words of a crash. `where` must live as long.
class SLIM_API CallScope {
 public:
  explicit CallScope(const char* where);
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

 private:
  const char* outer_;
};
/// What this thread calls, or, in a thread that calls nothing (a worker of LibTorch), what the main thread does; "" if that calls
/// nothing either. May be called from a signal handler.
SLIM_API const char* current_call();

/// Calls into a plugin: whatever it throws becomes a Status led by `where` ("awq: model.layers.7"). fn returns Status or
/// Result<T>. Every virtual call of a plugin's object passes here and nowhere else.
template <class Fn>
auto guarded(const std::string& where, Fn&& fn) -> decltype(fn()) {
  const CallScope scope(where.c_str());
  try {
    auto result = fn();
    if (result.ok()) return result;
    if constexpr (std::is_same_v<decltype(result), Status>) {
      return led_by(where, result);
    } else {
      return led_by(where, result.status());
    }
  } catch (...) {
    return led_by(where, current_exception_status());
  }
}

}  // namespace slim
