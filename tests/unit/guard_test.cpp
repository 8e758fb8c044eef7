#include "plugin/guard.h"

#include <c10/util/Exception.h>
#include <doctest/doctest.h>

#include <stdexcept>

using namespace slim;

namespace {
Status thrown(const std::function<void()>& body) {
  return guarded("awq: layers.7", [&]() -> Status {
    body();
    return {};
  });
}
}  // namespace

TEST_CASE("guard/ a value or a success passes through") {
  CHECK(guarded("x", []() -> Status { return {}; }).ok());
  CHECK(*guarded("x", []() -> Result<int> { return 7; }) == 7);
}

TEST_CASE("guard/ an error is led by where it came from") {
  const auto result = guarded("awq: layers.7", []() -> Result<int> { return Status(Code::kNumeric, "NaN"); });
  CHECK(result.status().code() == Code::kNumeric);
  CHECK(result.status().message() == "awq: layers.7: NaN");
}

TEST_CASE("guard/ a name that the error begins with already is not said twice") {
  const auto message = [](const char* where, const char* error) {
    return led_by(where, Status(Code::kNumeric, error)).message();
  };
  CHECK(message("awq: layers.7", "layers.7: NaN") == "awq: layers.7: NaN");
  CHECK(message("a.jsonl:7", "a.jsonl:7: no image") == "a.jsonl:7: no image");
  CHECK(message("awq: layers.7", "layers.7.q_proj: NaN") == "awq: layers.7: layers.7.q_proj: NaN");
}

TEST_CASE("guard/ whatever is thrown becomes a status of its kind") {
  const Status exec = thrown([] { throw ExecError(Status(Code::kNotFound, "no tensor x")); });
  CHECK(exec.code() == Code::kNotFound);
  CHECK(exec.message() == "awq: layers.7: no tensor x");
  CHECK(thrown([] { throw std::bad_alloc(); }).code() == Code::kOutOfMemory);
  const Status standard = thrown([] { throw std::runtime_error("boom"); });
  CHECK(standard.code() == Code::kInternal);
  CHECK(standard.message() == "awq: layers.7: boom");
  CHECK(thrown([] { throw 42; }).code() == Code::kInternal);
  CHECK(thrown([] { throw ExecError(Status{}); }).code() == Code::kInternal);
}

TEST_CASE("guard/ LibTorch's errors are one line without its stack") {
  const Status status = thrown([] { TORCH_CHECK(false, "shapes differ"); });
  CHECK(status.code() == Code::kInternal);
  CHECK(status.message() == "awq: layers.7: shapes differ");
  const Status shapes = thrown([] { at::ones({2, 3}).matmul(at::ones({2, 3})); });
  CHECK(shapes.message().find('\n') == std::string::npos);
}

TEST_CASE("guard/ memory that LibTorch cannot allocate is out of memory") {
  const Status status = thrown([] { at::empty({int64_t{1} << 50}); });
  CHECK_MESSAGE(status.code() == Code::kOutOfMemory, status.message());
}
