#include "driver.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <array>
#include <filesystem>

namespace slim::cuda {
namespace {

const char kElse[] = ", or use --backend cpu";

/// The few functions of the driver's C interface that are asked (CUresult and CUdevice are ints).
struct Functions {
  int (*init)(unsigned) = nullptr;
  int (*count)(int*) = nullptr;
  int (*name)(char*, int, int) = nullptr;
  int (*total)(size_t*, int) = nullptr;
  int (*attribute)(int*, int, int) = nullptr;
  int (*error)(int, const char**) = nullptr;

  bool find(void* library) {
    const auto get = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(library, symbol));
      return function != nullptr;
    };
    return get(init, "cuInit") && get(count, "cuDeviceGetCount") && get(name, "cuDeviceGetName") &&
           get(total, "cuDeviceTotalMem_v2") && get(attribute, "cuDeviceGetAttribute") &&
           get(error, "cuGetErrorString");
  }
  std::string text(int code) const {
    const char* message = nullptr;
    error(code, &message);
    return message ? message : "error " + std::to_string(code);
  }
};

constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

}  // namespace

Result<Driver> Driver::open(const char* library) {
  void* const handle = ::dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    return Status(Code::kUnsupported, "no NVIDIA driver: " + std::string(library) +
                                          " is not found; install the driver of the GPU" + kElse);
  }
  Functions driver;
  if (!driver.find(handle))
    return Status(
        Code::kUnsupported,
        std::string(library) + " is no NVIDIA driver, or one older than CUDA 11; update it" + kElse);
  if (const int code = driver.init(0); code != 0) {
    return Status(Code::kUnsupported, "the NVIDIA driver does not start: " + driver.text(code) +
                                          "; see whether nvidia-smi lists a GPU" + kElse);
  }
  int count = 0;
  if (const int code = driver.count(&count); code != 0 || count == 0) {
    return Status(Code::kUnsupported, std::string("the NVIDIA driver finds no GPU") +
                                          (code ? ": " + driver.text(code) : "") +
                                          "; see nvidia-smi and CUDA_VISIBLE_DEVICES" + kElse);
  }
  Driver found;
  for (int i = 0; i < count; ++i) {
    std::array<char, 256> name{};
    size_t bytes = 0;
    int major = 0, minor = 0;
    driver.name(name.data(), static_cast<int>(name.size()) - 1, i);
    driver.total(&bytes, i);
    driver.attribute(&major, kCapabilityMajor, i);
    driver.attribute(&minor, kCapabilityMinor, i);
    found.gpus.push_back({name.data(), static_cast<int64_t>(bytes), major * 10 + minor});
  }
  return found;
}

Status load_torch_cuda() {
  // Opened before anything asks LibTorch whether it has CUDA: the first answer is remembered for good.
  Dl_info torch{};
  ::dladdr(reinterpret_cast<const void*>(&at::get_num_threads), &torch);
  const std::string folder =
      std::filesystem::path(torch.dli_fname ? torch.dli_fname : "").parent_path().string();
  const std::string library = folder + "/libtorch_cuda.so";
  if (!::dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
    const char* const reason = ::dlerror();
    return {Code::kUnsupported,
            "LibTorch's CUDA part cannot be loaded (" + std::string(reason ? reason : library) +
                "); install a LibTorch that is built for CUDA, and its nvidia packages" + kElse};
  }
  if (at::globalContext().hasCUDA()) return {};
  return {Code::kUnsupported, library + " was loaded, but offers no CUDA; install LibTorch anew" + kElse};
}

}  // namespace slim::cuda
