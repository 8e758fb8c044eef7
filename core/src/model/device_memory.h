#pragma once
#include <c10/core/Device.h>

#include <cstdint>

#include "slim/export.hpp"

/// Memory of a device, as its allocator in LibTorch counts it.
namespace slim {

/// What tensors may still take, in bytes; 0 where the device's library does not tell.
SLIM_API int64_t free_device_memory(c10::Device);
/// Most bytes of tensors that were there at a time since reset_peak_device_memory(); 0 where the library does not count.
SLIM_API int64_t peak_device_memory(c10::Device);
SLIM_API void reset_peak_device_memory(c10::Device);
/// Gives what the allocator keeps of freed tensors back to the device.
SLIM_API void release_device_memory(c10::Device);

}  // namespace slim
