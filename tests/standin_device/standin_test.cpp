// The stand-in keeps its contract, and what a run does with a device keeps it too.
#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <cstdlib>

#include "model/device_copies.h"
#include "model/device_memory.h"
#include "util/device_moves.h"

using namespace slim;

namespace {

at::Device device() {
  static const bool opened = [] {
    const char* const build = std::getenv("SLIM_BUILD_DIR");
    REQUIRE_MESSAGE(build, "SLIM_BUILD_DIR is not set");
    return ::dlopen((std::string(build) + "/standin/libtorch_npu.so").c_str(), RTLD_NOW | RTLD_GLOBAL) !=
           nullptr;
  }();
  REQUIRE_MESSAGE(opened, ::dlerror());
  return {c10::kPrivateUse1, 0};
}

bool refuses(const char* says, const std::function<void()>& work) {
  try {
    work();
  } catch (const c10::Error& error) {
    return std::string(error.what()).find(says) != std::string::npos;
  }
  return false;
}

}  // namespace

TEST_CASE("standin/ operators give the CPU's bits, views share memory, and results go back") {
  const at::Tensor x = at::randn({37, 20}), y = at::randn({20, 11});
  const at::Tensor there = x.to(device());
  CHECK(at::equal(at::mm(there, y.to(device())).cpu(), at::mm(x, y)));
  there.t().select(0, 3).mul_(2);
  CHECK(at::equal(there.cpu().select(1, 3), x.select(1, 3) * 2));
}

TEST_CASE("standin/ a tensor of the host beside one of the device is an error, a number is not") {
  const at::Tensor there = at::ones({4}).to(device());
  CHECK(refuses("same device", [&] { there + at::ones({4}); }));  // LibTorch's own check
  CHECK(refuses("of the host beside", [&] { there.index_select(0, at::zeros({1}, at::kLong)); }));
  CHECK(at::equal((there * 2.0).cpu(), at::full({4}, 2.0)));
}

TEST_CASE("standin/ copies on a stream of their own are late: nothing may use them before it has waited") {
  const c10::impl::VirtualGuardImpl guard(c10::kPrivateUse1);
  const c10::Stream stream = guard.getStreamFromGlobalPool(device());
  const at::Tensor host = at::ones({1000}).pin_memory();
  const at::Tensor there = at::empty({1000}, host.options().pinned_memory(false).device(device()));
  {
    const c10::StreamGuard on(stream);
    there.copy_(host, /*non_blocking=*/true);
  }
  CHECK(refuses("waited", [&] { there + 1; }));
  c10::Event event(c10::kPrivateUse1);
  event.record(stream);
  event.block(guard.getDefaultStream(device()));
  CHECK(at::equal((there + 1).cpu(), at::full({1000}, 2.0)));
}

TEST_CASE("standin/ a stream that does not wait for the default one may not copy what that works on") {
  const c10::impl::VirtualGuardImpl guard(c10::kPrivateUse1);
  const at::Tensor there = at::ones({10}).to(device()) + 1;
  const at::Tensor host = at::empty({10}, at::TensorOptions().pinned_memory(true));
  const c10::StreamGuard on(guard.getStreamFromGlobalPool(device()));
  CHECK(refuses("without waiting", [&] { host.copy_(there, /*non_blocking=*/true); }));
}

TEST_CASE("device_copies/ values arrive on the device and on the host, in another thread too") {
  DeviceCopies up(device());
  const at::Tensor x = at::randn({50, 30}), there = up.to_device(x);
  up.start();
  up.wait_on_device();
  const at::Tensor sum = there + there;
  DeviceCopies down(device());
  const at::Tensor back = down.to_host(sum);
  down.start();
  CHECK_FALSE(at::equal(back, x + x));  // not yet
  down.wait_on_host();
  CHECK(at::equal(back, x + x));
}

TEST_CASE(
    "batch_stream/ overlapping or in turn, every batch is made once, in order, and integers stay on the "
    "host") {
  std::vector<Carry> batches;
  for (int64_t i = 0; i < 5; ++i)
    batches.push_back(
        {{"hidden", at::full({4, 3}, static_cast<double>(i))}, {"lengths", at::full({1}, i, at::kLong)}});
  for (const bool overlap : {false, true}) {
    std::vector<at::Tensor> made(batches.size());
    const BatchStream stream([&](size_t i) -> const Carry& { return batches[i]; },
                             [&](size_t i, Carry& there, const Status& moved) -> Status {
                               REQUIRE(moved.ok());
                               CHECK(there.at("hidden").device() == device());
                               CHECK(there.at("lengths").device().is_cpu());
                               there["hidden"] = there.at("hidden") * 10;
                               return {};
                             },
                             [&](size_t i, Carry result) -> Status {
                               made[i] = result.at("hidden");
                               return {};
                             });
    REQUIRE(stream.run(batches.size(), device(), overlap).ok());
    for (size_t i = 0; i < made.size(); ++i) CHECK(at::equal(made[i], batches[i].at("hidden") * 10));
  }
}

TEST_CASE("batch_stream/ an error ends it, after what was begun has ended") {
  const Carry batch{{"hidden", at::ones({2, 2})}};
  int passes = 0, kept = 0;
  const BatchStream stream([&](size_t) -> const Carry& { return batch; },
                           [&](size_t i, Carry&, const Status&) {
                             return ++passes, i == 2 ? Status(Code::kNumeric, "third") : Status{};
                           },
                           [&](size_t, Carry) { return ++kept, Status{}; });
  CHECK(stream.run(6, device(), true).message() == "third");
  CHECK(passes == 3);
  CHECK(kept == 2);
}

TEST_CASE("device_memory/ the allocator's counts are those of tensors") {
  reset_peak_device_memory(device());
  const int64_t before = peak_device_memory(device());
  at::empty({1 << 20}, at::TensorOptions().device(device()));
  CHECK(peak_device_memory(device()) - before == 4 << 20);
  CHECK(free_device_memory(device()) > 0);
  CHECK(peak_device_memory(at::kCPU) == 0);
}
