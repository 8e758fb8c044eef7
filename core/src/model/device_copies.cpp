#include "model/device_copies.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <future>
#include <memory>

#include "plugin/guard.h"
#include "util/device_moves.h"

namespace slim {
namespace {

c10::Stream default_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getDefaultStream(device);
}

/// The one stream for copies: copies of one direction would only share the bus.
c10::Stream copy_stream(at::Device device) {
  static const c10::Stream stream =
      c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device, false);
  return stream;
}

/// A batch on its way to the device.
struct Arriving {
  explicit Arriving(at::Device device) : copies(device) {}
  DeviceCopies copies;
  Carry carry;
};

/// Null: the device has no room for it now.
std::unique_ptr<Arriving> send(const Carry& batch, at::Device device) {
  const c10::NoGradGuard no_grad;
  auto arriving = std::make_unique<Arriving>(device);
  const Status status = guarded("moving between host and device", [&]() -> Status {
    arriving->carry = carry_to_device(batch, arriving->copies);
    arriving->copies.start();
    return {};
  });
  return status.ok() ? std::move(arriving) : nullptr;
}

/// Without overlap; a batch for which there is no room stays on the host.
Status move_now(const Carry& batch, at::Device device, Carry& there) {
  Status status = guarded("moving between host and device", [&]() -> Status {
    there = carry_on(batch, device);
    return {};
  });
  if (!status.ok()) there = batch;
  return status;
}

Status first_error(Status first, Status second) { return first.ok() ? std::move(second) : std::move(first); }

}  // namespace

DeviceCopies::~DeviceCopies() {
  if (done_) done_->synchronize();
}

at::Tensor DeviceCopies::to_device(const at::Tensor& host) {
  if (!host.defined() || host.device() == device_) return host;
  const at::Tensor pinned = host.pin_memory();
  return copies_.emplace_back(pinned, at::empty_like(host, host.options().device(device_))).second;
}

at::Tensor DeviceCopies::to_host(const at::Tensor& on_device) {
  if (!on_device.defined() || on_device.device().is_cpu()) return on_device;
  const at::Tensor pinned =
      at::empty_like(on_device, on_device.options().device(at::kCPU).pinned_memory(true));
  return copies_.emplace_back(on_device, pinned).second;
}

void DeviceCopies::start() {
  if (copies_.empty()) return;
  const c10::Stream stream = copy_stream(device_);
  c10::Event given(device_.type());
  given.record(default_stream(device_));
  given.block(stream);
  const c10::StreamGuard guard(stream);
  for (const auto& [from, to] : copies_) to.copy_(from, /*non_blocking=*/true);
  done_.emplace(device_.type());
  done_->record(stream);
}

void DeviceCopies::wait_on_device() {
  if (done_) done_->block(default_stream(device_));
  for (auto& [from, to] : copies_) to.reset();
}

void DeviceCopies::wait_on_host() {
  if (done_) done_->synchronize();
  copies_.clear();
}

Carry carry_to_device(const Carry& carry, DeviceCopies& copies) {
  Carry there = carry;
  for (auto& [name, tensor] : there) {
    if (tensor.defined() && tensor.is_floating_point()) tensor = copies.to_device(tensor);
  }
  return there;
}

Status BatchStream::run(size_t count, at::Device device, bool overlap) const {
  return device.is_cpu() || !overlap ? in_turn(count, device) : overlapping(count, device);
}

Status BatchStream::in_turn(size_t count, at::Device device) const {
  for (size_t i = 0; i < count; ++i) {
    Carry there;
    const Status moved = move_now(batch_(i), device, there);
    SLIM_TRY(pass_(i, there, moved));
    if (keep_) SLIM_TRY(keep_(i, carry_on(there, at::kCPU)));
  }
  return {};
}

Status BatchStream::overlapping(size_t count, at::Device device) const {
  const auto send_later = [&](size_t i) {
    return std::async(std::launch::async, [this, i, device] { return send(batch_(i), device); });
  };
  std::future<std::unique_ptr<Arriving>> coming;
  std::future<Status> leaving;
  Status status;
  for (size_t i = 0; i < count && status.ok(); ++i) {
    if (!coming.valid()) coming = send_later(i);
    const auto arrived = coming.get();
    if (i + 1 < count) coming = send_later(i + 1);
    Carry there;
    Status moved;
    if (arrived) {
      arrived->copies.wait_on_device();
      there = std::move(arrived->carry);
    } else {
      moved = move_now(batch_(i), device, there);
    }
    status = pass_(i, there, moved);
    if (leaving.valid()) status = first_error(status, leaving.get());
    if (status.ok() && keep_) leaving = take_back(i, std::move(there), device);
  }
  if (coming.valid()) coming.wait();  // everything that was begun ends before an error is told
  return leaving.valid() ? first_error(status, leaving.get()) : status;
}

/// The result's way to `keep`.
std::future<Status> BatchStream::take_back(size_t i, Carry there, at::Device device) const {
  auto copies = std::make_shared<DeviceCopies>(device);
  Carry back = there;
  const Status begun = guarded("moving between host and device", [&]() -> Status {
    for (auto& [name, tensor] : back) tensor = copies->to_host(tensor);
    copies->start();
    return {};
  });
  if (!begun.ok()) back = carry_on(there, at::kCPU);  // no pinned memory: at once
  return std::async(std::launch::async, [this, i, copies, back = std::move(back)]() mutable {
    return guarded("moving between host and device", [&]() -> Status {
      const c10::NoGradGuard no_grad;
      copies->wait_on_host();
      for (auto& [name, tensor] : back) {
        if (tensor.defined())
          tensor = tensor.clone();  // pinned memory is for copies: too much of it starves the system
      }
      return keep_(i, std::move(back));
    });
  });
}

}  // namespace slim
