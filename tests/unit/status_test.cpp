#include <doctest/doctest.h>

#include "slim/status.hpp"

using namespace slim;

TEST_CASE("status/ a context is put before the message") {
  const Status status = Status(Code::kIo, "disk full").in("layers.3");
  CHECK(status.message() == "layers.3: disk full");
  CHECK(Status{}.in("anywhere").ok());
}

TEST_CASE("status/ SLIM_ASSIGN passes an error on and a value through") {
  const auto half = [](int n) -> Result<int> {
    if (n % 2) return Status(Code::kInvalidArgument, "odd");
    return n / 2;
  };
  const auto quarter = [&](int n) -> Result<int> {
    SLIM_ASSIGN(const int h, half(n));
    return half(h);
  };
  CHECK(*quarter(8) == 2);
  CHECK(quarter(6).status().message() == "odd");
  CHECK(quarter(5).status().message() == "odd");
}
