#include "util/host_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <unordered_map>

namespace slim {
namespace {

constexpr size_t kLarge = size_t{4} << 20, kHugePage = size_t{2} << 20;

/// Large tensors: those in use by address, and those that were freed, oldest first. Together they are never more than were once in
/// use: what is kept does not raise the peak.
class Kept {
 public:
  void limit(size_t bytes) { limit_ = bytes; }

  void lend(void* data, size_t bytes) {
    const std::lock_guard lock(mutex_);
    lent_[data] = bytes;
  }

  /// Room for a tensor: a freed one of its size, or null; then others were given back, so that a new one fits below the peak.
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    in_use_ += bytes;
    most_ = std::max(most_, in_use_);
    for (auto it = blocks_.rbegin(); it != blocks_.rend(); ++it) {
      if (it->bytes != bytes) continue;
      void* const data = it->data;
      total_ -= bytes;
      blocks_.erase(std::next(it).base());
      return data;
    }
    shrink(most_ - in_use_);
    return nullptr;
  }

  /// take() was in vain: there is no memory.
  void not_taken(size_t bytes) {
    const std::lock_guard lock(mutex_);
    in_use_ -= bytes;
  }

  /// False: not lent from here.
  bool give(void* data) {
    const std::lock_guard lock(mutex_);
    const auto lent = lent_.find(data);
    if (lent == lent_.end()) return false;
    blocks_.push_back({data, lent->second});
    total_ += lent->second;
    in_use_ -= lent->second;
    lent_.erase(lent);
    shrink(limit_);
    return true;
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    shrink(0);
  }

  size_t total() {
    const std::lock_guard lock(mutex_);
    return total_;
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
  std::unordered_map<void*, size_t> lent_;
  size_t total_ = 0, limit_ = 0;  // bytes kept
  size_t in_use_ = 0, most_ = 0;  // bytes lent, now and at most
};

Kept& kept() {
  static auto* const blocks = new Kept;  // tensors may be freed by destructors of globals
  return *blocks;
}

c10::DeleterFnPtr small_deleter = nullptr;

/// oneDNN and attention free by address alone (raw_deallocate), whatever the size was.
void free_by_address(void* data) {
  if (!kept().give(data)) small_deleter(data);
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
    if (data == nullptr) kept().not_taken(rounded);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "not enough memory: a tensor of ", bytes, " bytes");
    kept().lend(data, rounded);
    return {data, data, &free_by_address, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_by_address; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

 private:
  static void* fresh(size_t bytes) {
    void* const data = std::aligned_alloc(kHugePage, bytes);
    if (data != nullptr)
      ::madvise(data, bytes, MADV_HUGEPAGE);  // a hint: kernels without it serve small pages
    return data;
  }

  c10::Allocator* small_;
};

}  // namespace

void use_huge_recycled_memory(int64_t kept_bytes) {
  ::mallopt(M_MMAP_THRESHOLD,
            static_cast<int>(kLarge));  // else the C library keeps freed ones of up to 32 MiB in its heap
  kept().limit(static_cast<size_t>(kept_bytes));
  static auto* const allocator = [] {
    c10::Allocator* const small = c10::GetCPUAllocator();
    small_deleter = small->raw_deleter();
    return new HugeRecycled(small);
  }();
  c10::SetCPUAllocator(allocator, /*priority=*/1);
}

int64_t recycled_memory() { return static_cast<int64_t>(kept().total()); }

void release_recycled_memory() { kept().clear(); }

}  // namespace slim
