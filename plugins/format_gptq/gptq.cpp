#include "common/gptq.hpp"
#include "slim/plugin.hpp"

namespace {
/// Symmetric weights: what every reader of GPTQ loads.
struct Gptq final : slim::formats::GptqFormat {
  Gptq() : GptqFormat(/*version=*/1) {}
};
}  // namespace
SLIM_FORMAT_PLUGIN("gptq", Gptq, "GPTQ checkpoints (v1) for GPTQModel, vLLM and transformers")
