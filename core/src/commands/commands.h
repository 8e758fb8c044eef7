#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "config/run_config.h"
#include "plugin/registry.h"
#include "slim/progress.hpp"

/// What the `slim` commands do, without flags and printing.
namespace slim {

/// The main job. On failure no output folder is left.
SLIM_API Result<Report> quantize(const RunConfig&, PluginRegistry&, Progress&);
/// The same decisions from headers alone: what happens to each tensor, peak memory, output size.
SLIM_API Result<Report> plan(const RunConfig&, PluginRegistry&);
/// What a checkpoint holds: towers, dtypes, bytes, quantization.
SLIM_API Result<Report> inspect(const std::string& folder, PluginRegistry&);

struct EvalConfig {
  std::string model, reference, data;  ///< data: a file, or a folder with eval*.jsonl, .txt or .parquet
  std::string adapter, backend = "auto", kernels = "fast", dtype = "auto";
  int64_t limit = 0, batch_size = 16, max_new_tokens = 24;
  bool allow_outside = false;  ///< images may lie outside the data set's folder
  bool generate = true;        ///< answer questions (exact match); else likelihoods only
};
/// Perplexity on text, KL divergence against the reference, exact-match answers on questions; original and quantized alike.
SLIM_API Result<Report> evaluate(const EvalConfig&, PluginRegistry&, Progress&);

struct VerifyConfig {
  std::string model, reference;
  std::string engine;           ///< "vllm", ...: its rules too; empty: none
  int64_t tensor_parallel = 1;  ///< devices of the engine
};
/// Re-reads what was written: completeness, decoding, signal-to-noise of every layer against the reference, and the rules of the
/// engine that it is for. kVerification.
SLIM_API Result<Report> verify(const VerifyConfig&, PluginRegistry&, Progress&);

}  // namespace slim
