#pragma once
#include <cassert>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "slim/export.hpp"

namespace slim {

/// What kind of thing went wrong. The command line turns kInvalidArgument into exit code 2, kCancelled into 130,
/// kVerification into 3 and every other failure into 1.
enum class Code : uint8_t {
  kOk,
  kInvalidArgument,  ///< the user's flags, configuration or plugin options
  kNotFound,
  kUnsupported,
  kIncompatible,  ///< built against another slim, LibTorch or C++ ABI
  kCorrupt,       ///< a file contradicts itself or its specification
  kOutOfMemory,
  kIo,
  kNumeric,
  kVerification,
  kCancelled,
  kInternal
};

/// An error as a value: a code and one message for the user that says what, where, found, expected, what to do.
/// Immutable after construction; copies may be used from any thread.
class [[nodiscard]] Status {
 public:
  Status() = default;
  /// An error; `code` is not kOk.
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {
    assert(code_ != Code::kOk);
  }
  bool ok() const { return code_ == Code::kOk; }           ///< no error
  Code code() const { return code_; }                      ///< its kind
  const std::string& message() const { return message_; }  ///< for people; empty when ok
  /// The same error, its message led by `where`: `return std::move(status).in("layers.7.mlp");`
  Status in(std::string_view where) && {
    if (!ok()) message_ = std::string(where) + ": " + message_;
    return std::move(*this);
  }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

/// A value, or the Status that says why there is none. Dereferencing a failed Result is a programming error.
template <class T>
class [[nodiscard]] Result {
 public:
  /// A value.
  Result(T value) : value_(std::move(value)) {}  // NOLINT
  /// An error: `status` is not ok.
  Result(Status status) : value_(std::move(status)) { assert(!std::get<1>(value_).ok()); }  // NOLINT
  bool ok() const { return value_.index() == 0; }                          ///< there is a value
  Status status() const { return ok() ? Status{} : std::get<1>(value_); }  ///< why there is none
  T& operator*() & { return std::get<0>(value_); }                         ///< the value
  const T& operator*() const& { return std::get<0>(value_); }              ///< the value
  T&& operator*() && { return std::move(std::get<0>(value_)); }            ///< the value, to be moved
  T* operator->() { return &std::get<0>(value_); }                         ///< of the value
  const T* operator->() const { return &std::get<0>(value_); }             ///< of the value

 private:
  std::variant<T, Status> value_;
};

}  // namespace slim

/// Returns the Status of `expr` from the enclosing function unless it is ok.
#define SLIM_TRY(expr)                                         \
  do {                                                         \
    if (::slim::Status slim_status_ = (expr); !slim_status_.ok()) return slim_status_; \
  } while (0)
#define SLIM_CONCAT_(a, b) a##b
#define SLIM_CONCAT(a, b) SLIM_CONCAT_(a, b)
#define SLIM_ASSIGN_(tmp, lhs, expr)   \
  auto tmp = (expr);                   \
  if (!tmp.ok()) return tmp.status();  \
  lhs = *std::move(tmp)
/// `SLIM_ASSIGN(auto x, f());` binds the value of a Result, or returns its Status from the enclosing function.
#define SLIM_ASSIGN(lhs, expr) SLIM_ASSIGN_(SLIM_CONCAT(slim_result_, __LINE__), lhs, expr)
