#include "memory.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "streams.h"

namespace standin {
namespace {

/// Not canonical on x86-64, and beyond the user space of other processors.
constexpr uintptr_t kShift = uintptr_t{1} << 62;
constexpr size_t kAlignment = 64;  // as LibTorch aligns memory of the host: kernels round by alignment
constexpr unsigned char kGarbage = 0xFF;  // NaN in every float type

void free_block(void* address);
void free_pinned(void* data);

class Memory final : public c10::DeviceAllocator {
 public:
  Memory() {
    if (const char* bytes = std::getenv("SLIM_STANDIN_MEMORY")) limit_ = std::strtoll(bytes, nullptr, 10);
  }

  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::kPrivateUse1, 0);
    if (bytes == 0) return {nullptr, device};
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    const std::lock_guard lock(mutex_);
    if (limit_ > 0 && taken_ + static_cast<int64_t>(rounded) > limit_) {
      ++refused_;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "the stand-in device has ", limit_, " bytes, ", taken_, " are in use, ", bytes, " were asked for");
    }
    void* const real = std::aligned_alloc(kAlignment, rounded);
    TORCH_CHECK_WITH(OutOfMemoryError, real, "not enough memory of the host");
    std::memset(real, kGarbage, rounded);
    blocks_[real] = rounded;
    taken_ += static_cast<int64_t>(rounded);
    peak_ = std::max(peak_, taken_);
    void* const address = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(real) + kShift);
    return {address, address, &free_block, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memmove(host_address(to), host_address(from), bytes); }

  void give_back(void* real) {
    size_t bytes = 0;
    {
      const std::lock_guard lock(mutex_);
      bytes = blocks_.at(real);
      blocks_.erase(real);
      taken_ -= static_cast<int64_t>(bytes);
    }
    forget_block(real, bytes);
    std::memset(real, kGarbage, bytes);
    std::free(real);
  }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    c10::CachingDeviceAllocator::DeviceStats stats;
    auto& bytes = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    bytes.current = taken_;
    bytes.peak = peak_;
    stats.num_ooms = refused_;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    peak_ = taken_;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    const int64_t total = limit_ > 0 ? limit_ : int64_t{1} << 34;
    return {static_cast<size_t>(total - taken_), static_cast<size_t>(total)};
  }

  int64_t peak() const { return peak_; }
  int64_t refused() const { return refused_; }

 private:
  std::mutex mutex_;
  std::map<void*, size_t> blocks_;
  int64_t taken_ = 0, peak_ = 0, limit_ = 0, refused_ = 0;
};

Memory& the_memory() {
  static auto* const memory = new Memory;  // tensors may be freed by destructors of globals
  return *memory;
}

void free_block(void* address) { the_memory().give_back(host_address(address)); }

/// Pinned memory.
class Pinned final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const data = std::aligned_alloc(kAlignment, (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment);
    TORCH_CHECK_WITH(OutOfMemoryError, data, "not enough memory of the host");
    const std::lock_guard lock(mutex_);
    blocks_[data] = bytes;
    return {data, data, &free_pinned, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool holds(const void* data) {
    const std::lock_guard lock(mutex_);
    const auto after = blocks_.upper_bound(const_cast<void*>(data));
    if (after == blocks_.begin()) return false;
    const auto block = std::prev(after);
    return data < static_cast<const char*>(block->first) + std::max<size_t>(block->second, 1);
  }
  void give_back(void* data) {
    size_t bytes = 0;
    {
      const std::lock_guard lock(mutex_);
      bytes = blocks_.at(data);
      blocks_.erase(data);
    }
    forget_block(data, bytes);
    std::memset(data, kGarbage, bytes);
    std::free(data);
  }

 private:
  std::mutex mutex_;
  std::map<void*, size_t> blocks_;
};

Pinned& the_pinned() {
  static auto* const pinned = new Pinned;
  return *pinned;
}
void free_pinned(void* data) { the_pinned().give_back(data); }

struct Counts {
  std::mutex mutex;
  uint64_t operators = 0, to_device = 0, to_host = 0, deferred = 0, bytes_to_device = 0, bytes_to_host = 0;
};
Counts& the_counts() {
  static auto* const counts = new Counts;
  return *counts;
}

/// SLIM_STANDIN_REPORT: a file that gets the counts when the process ends.
struct Reporter {
  ~Reporter() {
    if (const char* file = std::getenv("SLIM_STANDIN_REPORT")) std::ofstream(file) << counts();
  }
} reporter;

}  // namespace

c10::DeviceAllocator& memory() { return the_memory(); }
c10::Allocator& pinned_memory() { return the_pinned(); }
bool is_pinned(const void* data) { return the_pinned().holds(data); }

void* host_address(const void* device_address) {
  const auto address = reinterpret_cast<uintptr_t>(device_address);
  return device_address ? reinterpret_cast<void*>(address - kShift) : nullptr;
}

void count_operator() {
  const std::lock_guard lock(the_counts().mutex);
  ++the_counts().operators;
}

void count_copy(bool to_device, bool deferred, uint64_t bytes) {
  Counts& counts = the_counts();
  const std::lock_guard lock(counts.mutex);
  ++(to_device ? counts.to_device : counts.to_host);
  (to_device ? counts.bytes_to_device : counts.bytes_to_host) += bytes;
  counts.deferred += deferred;
}

std::string counts() {
  const Counts& counts = the_counts();
  std::ostringstream text;
  text << R"({"peak_bytes": )" << the_memory().peak() << R"(, "out_of_memory": )" << the_memory().refused() << R"(, "operators": )" << counts.operators
       << R"(, "copies_to_device": )" << counts.to_device << R"(, "copies_to_host": )" << counts.to_host << R"(, "copies_deferred": )" << counts.deferred
       << R"(, "bytes_to_device": )" << counts.bytes_to_device << R"(, "bytes_to_host": )" << counts.bytes_to_host << "}\n";
  return text.str();
}

}  // namespace standin
