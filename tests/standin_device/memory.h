#pragma once
#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>
#include <string>

namespace standin {

/// The device's memory: ordinary memory under addresses that no processor can read, so that host code which forgets to move a tensor
/// crashes instead of working by luck. Counts what is taken; SLIM_STANDIN_MEMORY (bytes) limits it.
c10::DeviceAllocator& memory();
/// Host memory that copies may overlap with.
c10::Allocator& pinned_memory();
bool is_pinned(const void* data);

/// Where the bytes of a device's address lie; the other way round for memory that memory() gave.
void* host_address(const void* device_address);

/// What happened so far, as JSON.
std::string counts();
void count_operator();
void count_copy(bool to_device, bool deferred, uint64_t bytes);

}  // namespace standin
