// What LibTorch asks of a device: its guard (streams and events), its hooks and its allocator.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "memory.h"
#include "streams.h"

namespace standin {
namespace {

const c10::Device kDevice(c10::kPrivateUse1, 0);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kPrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return stream(current_stream()); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(kDefaultStream); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(pool_stream()); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(pool_stream()); }
  c10::Stream exchangeStream(c10::Stream next) const override { return stream(exchange_current_stream(next.id())); }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { destroy(static_cast<Event*>(event)); }
  void record(void** event, const c10::Stream& on, c10::DeviceIndex, c10::EventFlag) const override {
    auto* place = static_cast<Event*>(*event);
    standin::record(place, on.id());
    *event = place;
  }
  void block(void* event, const c10::Stream& on) const override { standin::block(static_cast<Event*>(event), on.id()); }
  bool queryEvent(void* event) const override {
    synchronizeEvent(event);
    return true;
  }
  bool queryStream(const c10::Stream& on) const override {
    synchronizeStream(on);
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override { synchronize_all(); }
  void synchronizeEvent(void* event) const override { synchronize(static_cast<Event*>(event)); }
  void synchronizeDevice(c10::DeviceIndex) const override { synchronize_all(); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}

 private:
  static c10::Stream stream(StreamId id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory(); }
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

const bool registered = [] {
  c10::register_privateuse1_backend("npu");
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  c10::SetAllocator(c10::kPrivateUse1, &memory());
  return true;
}();

}  // namespace
}  // namespace standin
