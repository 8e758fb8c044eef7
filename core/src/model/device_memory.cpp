#include "model/device_memory.h"

#include <c10/core/CachingDeviceAllocator.h>

namespace slim {
namespace {

/// Null for the CPU, and for devices whose library brings another kind of allocator.
c10::DeviceAllocator* allocator_of(c10::Device device) {
  return device.is_cpu() ? nullptr : dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
}

/// What asks a library: one that cannot answer throws.
template <class Fn>
int64_t told(c10::Device device, Fn&& ask) {
  auto* const allocator = allocator_of(device);
  if (!allocator) return 0;
  try {
    return static_cast<int64_t>(ask(*allocator));
  } catch (const c10::Error&) {
    return 0;
  }
}

}  // namespace

int64_t free_device_memory(c10::Device device) {
  return told(device,
              [&](c10::DeviceAllocator& allocator) { return allocator.getMemoryInfo(device.index()).first; });
}

int64_t peak_device_memory(c10::Device device) {
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return told(device, [&](c10::DeviceAllocator& allocator) {
    return allocator.getDeviceStats(device.index()).allocated_bytes[kAll].peak;
  });
}

void reset_peak_device_memory(c10::Device device) {
  told(device, [&](c10::DeviceAllocator& allocator) {
    allocator.resetPeakStats(device.index());
    return 0;
  });
}

void release_device_memory(c10::Device device) {
  told(device, [&](c10::DeviceAllocator& allocator) {
    allocator.emptyCache();
    return 0;
  });
}

}  // namespace slim
