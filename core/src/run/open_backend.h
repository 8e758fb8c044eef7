#pragma once
#include <string>

#include "plugin/registry.h"

namespace slim {

struct OpenBackend {
  std::string id;
  Owned<Backend> backend;
};

/// The backend of run.backend, opened. "auto": the first of cuda, npu and cpu that opens and that runs can compute on; why the others
/// do not open is what `slim doctor` tells. Backends' errors name what is missing.
Result<OpenBackend> open_backend(const std::string& wanted, PluginRegistry&);

/// Order in which "auto" tries them.
inline constexpr const char* kBackendsByRank[] = {"cuda", "npu", "cpu"};

}  // namespace slim
