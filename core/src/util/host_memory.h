#pragma once
#include <cstdint>

#include "slim/export.hpp"

namespace slim {

/// Makes LibTorch's CPU tensors of 4 MiB and more use huge pages, and keeps up to `kept_bytes` of freed ones for the next tensor of the
/// same size: the blocks of a model need the same sizes again and again, and clearing pages for them anew costs as much as the
/// rounding does. The peak stays what it is without: less is kept where new sizes need the room. For a program's main(), before the
/// first tensor. LibTorch's allocator serves smaller tensors.
SLIM_API void use_huge_recycled_memory(int64_t kept_bytes);
/// Bytes of freed tensors that are kept.
SLIM_API int64_t recycled_memory();
/// Gives them back.
SLIM_API void release_recycled_memory();

}  // namespace slim
