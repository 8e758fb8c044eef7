// Commands about one checkpoint: inspect, eval, verify.
#include <ATen/Parallel.h>

#include "cli.h"
#include "commands/commands.h"
#include "output.h"

namespace slim::cli {
namespace {

int run_inspect(const Arguments& arguments) {
  const auto folder = only_positional(arguments, "the checkpoint's folder");
  if (!folder.ok()) return fail(folder.status());
  const auto dirs = plugin_dirs(arguments);
  if (!dirs.ok()) return fail(dirs.status());
  PluginRegistry registry(*dirs);
  return print(inspect(*folder, registry), arguments.has("json"));
}

std::vector<Flag> eval_flags() {
  return {{"data", "PATH", "questions and texts: a file, or a folder with eval*.jsonl, .txt or .parquet", ""},
          {"reference", "DIR", "the original checkpoint: adds the KL divergence from it", ""},
          {"allow-outside", "", "images may lie outside the data set's folder", ""},
          {"limit", "N", "only the first N samples of each file (0: all)", ""},
          {"no-generate", "", "likelihoods only, no answers", ""},
          {"max-new-tokens", "N", "longest answer", ""},
          {"batch-size", "N", "samples that run together", ""},
          {"adapter", "ID", "model architecture (default: by config.json)", ""},
          {"backend", "ID", "cpu, cuda, npu (default: the best that opens; see `slim doctor`)", ""},
          {"kernels", "KIND", "fast | reference: the backend's kernels, or the core's plain ones", ""},
          {"dtype", "TYPE", "auto | float32 | bfloat16 | float16", ""},
          {"threads", "N", "CPU threads", ""}};
}

Result<EvalConfig> read_eval(const Arguments& arguments) {
  EvalConfig config;
  SLIM_ASSIGN(config.model, only_positional(arguments, "the checkpoint's folder"));
  config.reference = arguments.text("reference");
  config.data = arguments.text("data");
  if (config.data.empty())
    return Status(Code::kInvalidArgument, "--data is missing: questions or texts to evaluate on");
  config.adapter = arguments.text("adapter");
  config.backend = arguments.text("backend", config.backend);
  config.kernels = arguments.text("kernels", config.kernels);
  if (config.kernels != "fast" && config.kernels != "reference") {
    return Status(Code::kInvalidArgument,
                  "--kernels '" + config.kernels + "' is unknown; use fast or reference");
  }
  config.dtype = arguments.text("dtype", config.dtype);
  SLIM_ASSIGN(config.limit, arguments.integer("limit", config.limit, 0));
  SLIM_ASSIGN(config.batch_size, arguments.integer("batch-size", config.batch_size, 1));
  SLIM_ASSIGN(config.max_new_tokens, arguments.integer("max-new-tokens", config.max_new_tokens, 1));
  config.generate = !arguments.has("no-generate");
  config.allow_outside = arguments.has("allow-outside");
  SLIM_ASSIGN(const int64_t threads, arguments.integer("threads", 0, 1));
  if (threads > 0) at::set_num_threads(static_cast<int>(std::min<int64_t>(threads, 4096)));
  return config;
}

int run_eval(const Arguments& arguments) {
  const auto config = read_eval(arguments);
  if (!config.ok()) return fail(config.status());
  return run_reported(arguments, [&](PluginRegistry& registry, Progress& progress) {
    return evaluate(*config, registry, progress);
  });
}

int run_verify(const Arguments& arguments) {
  const auto folder = only_positional(arguments, "the compressed checkpoint's folder");
  if (!folder.ok()) return fail(folder.status());
  const auto tensor_parallel = arguments.integer("tp", 1, 1);
  if (!tensor_parallel.ok()) return fail(tensor_parallel.status());
  if (arguments.has("tp") && !arguments.has("engine"))
    return fail(Status(Code::kInvalidArgument, "--tp needs --engine"));
  return run_reported(arguments, [&](PluginRegistry& registry, Progress& progress) {
    return verify({*folder, arguments.text("reference"), arguments.text("engine"), *tensor_parallel},
                  registry, progress);
  });
}

}  // namespace

Command inspect_command() {
  return {"inspect", "inspect DIR [--json]", "what a checkpoint holds: towers, dtypes, bytes, quantization",
          common_flags(), &run_inspect};
}

Command eval_command() {
  return {"eval", "eval DIR --data PATH [--reference DIR] [options]",
          "perplexity, KL against the reference, answer accuracy", eval_flags() + common_flags(), &run_eval};
}

Command verify_command() {
  return {
      "verify", "verify DIR [--reference DIR] [--engine NAME [--tp N]]",
      "re-read what was written: completeness, decoding, error per layer, an engine's rules",
      std::vector<Flag>{{"reference", "DIR", "the original checkpoint: adds the error of every layer", ""},
                        {"engine", "NAME", "vllm, transformers, lmdeploy, vllm-ascend: what it would not load", ""},
                        {"tp", "N", "devices that the engine cuts the model for (default 1)", ""}} +
          common_flags(),
      &run_verify};
}

}  // namespace slim::cli
