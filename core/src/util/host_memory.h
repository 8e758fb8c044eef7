#pragma once
#include <cstdint>

#include "slim/export.hpp"

namespace slim {

/// Makes LibTorch's CPU tensors of 4 MiB and more use huge pages, and keeps up to `kept_bytes` of freed ones for the next tensor of the
/// same size: the blocks of a model need the same sizes again and again, and clearing pages for them anew costs as much as the
/// rounding does. For a program's main(), before the first tensor. LibTorch's allocator serves smaller tensors.
SLIM_API void use_huge_recycled_memory(int64_t kept_bytes);
/// Gives back what is kept.
SLIM_API void release_recycled_memory();

}  // namespace slim
