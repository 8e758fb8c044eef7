#include "common/gptq.hpp"
#include "slim/plugin.hpp"

namespace {
/// Symmetric weights and any zero points, for readers of version 2.
struct GptqV2 final : slim::formats::GptqFormat {
  GptqV2() : GptqFormat(/*version=*/2) {}
};
}  // namespace
SLIM_FORMAT_PLUGIN("gptq_v2", GptqV2,
                   "GPTQ checkpoints (v2), which hold every zero point, for GPTQModel and vLLM")
