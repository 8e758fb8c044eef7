#include "calibrate/spill.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <set>

#include "checkpoint/file.h"
#include "slim/phase.hpp"

namespace slim {
namespace {

/// Below this a file costs more than it saves.
constexpr size_t kSmallest = 1 << 16;

/// Where mappings of this process begin: nothing else may be given back.
class Mappings {
 public:
  static Mappings& all() {
    static auto* const mappings = new Mappings();  // tensors may outlive everything
    return *mappings;
  }
  void add(const void* memory) {
    const std::lock_guard lock(mutex_);
    begins_.insert(memory);
  }
  void remove(void* memory, size_t bytes) {
    const std::lock_guard lock(mutex_);
    begins_.erase(memory);
    ::munmap(memory, bytes);
  }
  bool has(const void* memory) {
    const std::lock_guard lock(mutex_);
    return begins_.contains(memory);
  }

 private:
  std::mutex mutex_;
  std::set<const void*> begins_;
};

bool is_mapped(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_contiguous() && Mappings::all().has(tensor.const_data_ptr());
}

bool is_large(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().is_cpu() && tensor.nbytes() >= kSmallest;
}

/// A new file of the folder that disappears with its last use. Its space is reserved: a full disk is an error here, not a crash later.
Result<int> nameless_file(const std::string& folder, size_t bytes) {
  std::string path = folder + "/spill-XXXXXX";
  const int fd = ::mkstemp(path.data());
  if (fd < 0) return system_error(path, "make", errno);
  ::unlink(path.c_str());
  const int error = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  if (error == 0) return fd;
  ::close(fd);
  return system_error(folder, "keep " + bytes_string(static_cast<int64_t>(bytes)) + " of activations", error);
}

Result<at::Tensor> mapped_copy(const at::Tensor& tensor, const std::string& folder) {
  const size_t bytes = tensor.nbytes();
  SLIM_ASSIGN(const int fd, nameless_file(folder, bytes));
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (memory == MAP_FAILED) return system_error(folder, "map activations", error);
  const at::Tensor plain = tensor.contiguous();
  std::memcpy(memory, plain.const_data_ptr(), bytes);
  ::madvise(memory, bytes, MADV_DONTNEED);
  Mappings::all().add(memory);
  return at::from_blob(
      memory, tensor.sizes(), [bytes](void* data) { Mappings::all().remove(data, bytes); }, tensor.options());
}

}  // namespace

Result<Carry> Spill::store(Carry carry) const {
  if (!active_) return carry;
  const PhaseTimer timer(Phase::kSpilling);
  for (auto& [key, tensor] : carry) {
    if (!is_large(tensor) || is_mapped(tensor)) continue;
    SLIM_ASSIGN(tensor, mapped_copy(tensor, folder_));
  }
  return carry;
}

void Spill::release(const Carry& carry) {
  for (const auto& [key, tensor] : carry) {
    if (is_mapped(tensor))
      ::madvise(tensor.data_ptr(), tensor.nbytes(), MADV_DONTNEED);  // of a shared mapping: nothing is lost
  }
}

}  // namespace slim
