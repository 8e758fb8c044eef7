#include "torch_npu.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

namespace slim::npu {
namespace {

namespace fs = std::filesystem;
constexpr const char* kLibrary = "libtorch_npu.so";
const char kElse[] = ", or use --backend cpu";

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

void add_environment(const std::string& prefix, std::vector<std::string>& files) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(prefix) / "lib", error)) {
    if (!entry.path().filename().string().starts_with("python3")) continue;
    files.push_back((entry.path() / "site-packages/torch_npu/lib" / kLibrary).string());
  }
}

}  // namespace

std::vector<std::string> torch_npu_candidates() {
  std::vector<std::string> files;
  std::error_code ignored;
  if (const std::string named = environment("SLIM_TORCH_NPU"); !named.empty()) {
    if (!fs::is_directory(named, ignored)) return {named};
    return {(fs::path(named) / kLibrary).string(), (fs::path(named) / "torch_npu/lib" / kLibrary).string()};
  }
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const std::string prefix = environment(variable); !prefix.empty()) add_environment(prefix, files);
  }
  files.emplace_back(kLibrary);
  return files;
}

Status load_torch_npu(const char* cann_library) {
  if (!::dlopen(cann_library, RTLD_NOW | RTLD_GLOBAL)) {
    return {Code::kUnsupported, "CANN is missing: " + std::string(cann_library) +
                                    " is not found; install CANN and run `source set_env.sh` of its folder" +
                                    kElse};
  }
  std::string tried;
  for (const std::string& file : torch_npu_candidates()) {
    if (::dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL)) return {};
    const char* const reason = ::dlerror();
    tried += (tried.empty() ? "" : "; ") + std::string(reason ? reason : file);
  }
  return {Code::kUnsupported,
          "torch_npu's library cannot be loaded (" + tried +
              "); install the torch_npu of this LibTorch's version, or name its file in SLIM_TORCH_NPU" +
              kElse};
}

}  // namespace slim::npu
