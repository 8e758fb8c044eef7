#include "util/host_memory.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace slim;

namespace {

constexpr int64_t kMegabyte = int64_t{1} << 20;

at::Tensor megabytes(int64_t count) { return at::empty({count * kMegabyte}, at::kChar); }

/// Every test goes on from where the one before has left the peak: so does this one, far below it.
struct Recycling {
  Recycling() { use_huge_recycled_memory(64 * kMegabyte); }
  ~Recycling() { release_recycled_memory(); }
};

}  // namespace

TEST_CASE("host_memory/ a freed tensor serves the next of its size, and small ones are not kept") {
  const Recycling recycling;
  const void* const first = megabytes(10).const_data_ptr();
  CHECK(recycled_memory() == 10 * kMegabyte);
  const at::Tensor again = megabytes(10);
  CHECK(again.const_data_ptr() == first);
  CHECK(recycled_memory() == 0);
  megabytes(1);
  CHECK(recycled_memory() == 0);
}

TEST_CASE("host_memory/ what is in use and what is kept are together never more than what was once in use") {
  const Recycling recycling;
  int64_t most = 48;
  megabytes(most);
  at::manual_seed(1);
  std::vector<at::Tensor> used;
  int64_t in_use = 0;
  for (int step = 0; step < 300; ++step) {
    const int64_t size = 2 * at::randint(2, 8, {1}, at::kLong).item<int64_t>();
    if (in_use + size <= most && at::rand({1}).item<float>() < 0.6F) {
      used.push_back(megabytes(size));
      in_use += size;
    } else if (!used.empty()) {
      in_use -= used.front().numel() / kMegabyte;
      used.erase(used.begin());
    }
    CHECK(in_use + recycled_memory() / kMegabyte <= most);
  }
}

TEST_CASE("host_memory/ no more is kept than was allowed") {
  const Recycling recycling;
  std::vector<at::Tensor> used;
  for (int i = 0; i < 10; ++i) used.push_back(megabytes(10));
  used.clear();
  CHECK(recycled_memory() == 60 * kMegabyte);
  release_recycled_memory();
  CHECK(recycled_memory() == 0);
}
