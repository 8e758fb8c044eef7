#include "plugin/guard.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <atomic>

namespace slim {
namespace {

thread_local const char* call_of_thread = "";
std::atomic<const char*> call_of_main{""};

void set_call(const char* where) {
  call_of_thread = where;
  if (::gettid() == ::getpid()) call_of_main = where;
}

/// The first line: LibTorch appends its C++ stack.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

Status torch_status(const c10::Error& error) {
  const std::string message = first_line(error.what_without_backtrace());
  // LibTorch's allocator for the CPU reports exhaustion as a plain c10::Error.
  const bool exhausted = message.find("DefaultCPUAllocator") != std::string::npos;
  return Status(exhausted ? Code::kOutOfMemory : Code::kInternal, message);
}

}  // namespace

CallScope::CallScope(const char* where) : outer_(call_of_thread) { set_call(where); }
CallScope::~CallScope() { set_call(outer_); }

const char* current_call() { return *call_of_thread ? call_of_thread : call_of_main.load(); }

Status current_exception_status() {
  try {
    throw;
  } catch (const ExecError& e) {
    return e.status.ok() ? Status(Code::kInternal, "an ExecError without an error was thrown") : e.status;
  } catch (const c10::OutOfMemoryError& e) {
    return Status(Code::kOutOfMemory, first_line(e.what_without_backtrace()));
  } catch (const c10::Error& e) {
    return torch_status(e);
  } catch (const std::bad_alloc&) {
    return Status(Code::kOutOfMemory, "not enough memory");
  } catch (const std::exception& e) {
    return Status(Code::kInternal, e.what());
  } catch (...) {
    return Status(Code::kInternal, "something that is no std::exception was thrown");
  }
}

Status led_by(const std::string& where, const Status& status) {
  const size_t separator = where.rfind(": ");
  const std::string last = (separator == std::string::npos ? where : where.substr(separator + 2)) + ": ";
  const std::string& message = status.message();
  return Status(status.code(), message.starts_with(last) ? message.substr(last.size()) : message).in(where);
}

}  // namespace slim
