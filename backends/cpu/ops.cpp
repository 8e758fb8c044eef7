// Which operators have a kernel, and for which instruction set.
#include "ops.h"

#include <algorithm>
#include <atomic>

#include "in_use.h"

namespace slim::cpu {
namespace {

std::atomic<const kernels::Kernels*> chosen{nullptr};

}  // namespace

const kernels::Kernels& kernels_in_use() {
  if (const kernels::Kernels* found = chosen.load(std::memory_order_acquire)) return *found;
  use_instruction_set(
      instruction_sets().front());  // the operators may be called before the backend is opened
  return *chosen.load(std::memory_order_acquire);
}

const std::vector<std::string>& accelerated_ops() {
  static const std::vector<std::string> names = kernels::registered_operators(c10::DispatchKey::CPU);
  return names;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    names.emplace_back("avx512");
  }
  if (avx2) names.emplace_back("avx2");
#endif
  names.emplace_back("portable");
  return names;
}

void use_instruction_set(const std::string& name) {
  const kernels::Kernels* found = &kernels::portable_kernels();
#if defined(__x86_64__)
  if (name == "avx512") found = &kernels::avx512_kernels();
  if (name == "avx2") found = &kernels::avx2_kernels();
#endif
  TORCH_CHECK(name == found->name, "no kernels for instruction set ", name);
  chosen.store(found, std::memory_order_release);
}

}  // namespace slim::cpu
