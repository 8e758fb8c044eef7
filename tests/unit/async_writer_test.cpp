#include "checkpoint/async_writer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>

using namespace slim;

namespace {

/// What jobs keep alive, in bytes, now and at most.
class Held {
 public:
  std::shared_ptr<void> hold(int64_t bytes) {
    const int64_t now = bytes_ += bytes;
    int64_t most = most_;
    while (most < now && !most_.compare_exchange_weak(most, now)) {
    }
    return {this, [bytes](Held* held) { held->bytes_ -= bytes; }};
  }
  int64_t now() const { return bytes_; }
  int64_t most() const { return most_; }

 private:
  std::atomic<int64_t> bytes_ = 0, most_ = 0;
};

}  // namespace

TEST_CASE("async_writer/ pending jobs never hold more than was allowed, however slow the writer is") {
  constexpr int64_t kMost = 100, kLargest = 40;
  for (const uint64_t seed : {1, 2, 3}) {
    std::mt19937_64 random(seed);
    Held held;
    int64_t done = 0;
    AsyncWriter writer(kMost);
    for (int i = 0; i < 500; ++i) {
      const auto bytes = static_cast<int64_t>(random() % kLargest);
      REQUIRE(writer
                  .submit(bytes,
                          [&done, token = held.hold(bytes)] {
                            for (int k = 0; k < 5; ++k) std::this_thread::yield();
                            ++done;
                            return Status();
                          })
                  .ok());
      CHECK(held.now() <= kMost);
    }
    CHECK(writer.drain().ok());
    CHECK(done == 500);
    CHECK(held.now() == 0);
    CHECK(held.most() <= kMost + kLargest);  // the one that waits is not yet the writer's
  }
}

TEST_CASE("async_writer/ a job that is larger than what is allowed goes through alone") {
  Held held;
  AsyncWriter writer(10);
  for (const int64_t bytes : {4, 30, 6, 50, 3}) {
    REQUIRE(writer.submit(bytes, [token = held.hold(bytes)] { return Status(); }).ok());
    CHECK(held.now() <= std::max<int64_t>(10, bytes));
  }
  CHECK(writer.drain().ok());
  CHECK(held.most() <= 50 + 10);
}

TEST_CASE("async_writer/ after an error nothing runs, and a waiting submit returns it") {
  AsyncWriter writer(1);
  bool ran = false;
  Status status = writer.submit(1, [] { return Status(Code::kIo, "the disk is full"); });
  for (int i = 0; i < 3 && status.ok(); ++i) {
    status = writer.submit(1, [&ran] {
      ran = true;
      return Status();
    });
  }
  CHECK(status.message().find("the disk is full") != std::string::npos);
  CHECK(writer.drain().message() == status.message());
  CHECK_FALSE(ran);
}
