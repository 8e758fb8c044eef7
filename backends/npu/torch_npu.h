#pragma once
#include <string>
#include <vector>

#include "slim/status.hpp"

namespace slim::npu {

/// Files that may be torch_npu's library, in the order in which they are tried: SLIM_TORCH_NPU (the file, or a folder that holds it or
/// torch_npu/lib), the active Python environment (VIRTUAL_ENV, CONDA_PREFIX), and the bare name, for the system path.
std::vector<std::string> torch_npu_candidates();

/// Opens CANN's runtime library and then torch_npu's, which makes LibTorch's PrivateUse1 device the NPU. The message names the library
/// that is missing, where it was looked for, and what to do.
Status load_torch_npu(const char* cann_library = "libascendcl.so");

}  // namespace slim::npu
