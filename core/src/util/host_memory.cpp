#include "util/host_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>

namespace slim {
namespace {

constexpr size_t kLarge = size_t{4} << 20, kHugePage = size_t{2} << 20;

/// Freed large tensors, oldest first.
class Kept {
 public:
  void limit(size_t bytes) { limit_ = bytes; }

  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (auto it = blocks_.rbegin(); it != blocks_.rend(); ++it) {
      if (it->bytes != bytes) continue;
      void* const data = it->data;
      total_ -= bytes;
      blocks_.erase(std::next(it).base());
      return data;
    }
    return nullptr;
  }

  void give(void* data, size_t bytes) {
    const std::lock_guard lock(mutex_);
    blocks_.push_back({data, bytes});
    total_ += bytes;
    shrink(limit_);
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    shrink(0);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  void shrink(size_t bytes) {
    while (total_ > bytes) {
      std::free(blocks_.front().data);
      total_ -= blocks_.front().bytes;
      blocks_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Block> blocks_;
  size_t total_ = 0, limit_ = 0;
};

Kept& kept() {
  static auto* const blocks = new Kept;  // tensors may be freed by destructors of globals
  return *blocks;
}

struct Large {
  void* data;
  size_t bytes;
};

void free_large(void* context) {
  const auto* block = static_cast<Large*>(context);
  kept().give(block->data, block->bytes);
  delete block;
}

class HugeRecycled final : public c10::Allocator {
 public:
  explicit HugeRecycled(c10::Allocator* small) : small_(small) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kLarge) return small_->allocate(bytes);
    const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* data = kept().take(rounded);
    if (data == nullptr) data = fresh(rounded);
    if (data == nullptr) {
      kept().clear();
      data = fresh(rounded);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "not enough memory: a tensor of ", bytes, " bytes");
    return {data, new Large{data, rounded}, &free_large, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

 private:
  static void* fresh(size_t bytes) {
    void* const data = std::aligned_alloc(kHugePage, bytes);
    if (data != nullptr) ::madvise(data, bytes, MADV_HUGEPAGE);  // a hint: kernels without it serve small pages
    return data;
  }

  c10::Allocator* small_;
};

}  // namespace

void use_huge_recycled_memory(int64_t kept_bytes) {
  kept().limit(static_cast<size_t>(kept_bytes));
  static auto* const allocator = new HugeRecycled(c10::GetCPUAllocator());
  c10::SetCPUAllocator(allocator, /*priority=*/1);
}

void release_recycled_memory() { kept().clear(); }

}  // namespace slim
