// The main job, and `slim plan`: the same flags.
#include <algorithm>

#include "cli.h"
#include "config/run_config.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"
#include "slim/session.hpp"

namespace slim::cli {
namespace {

const std::string kSchemeKey = "compression.quantization.name";

std::vector<Flag> run_flags() {
  const std::string quantization = "compression.quantization.";
  return {
      {"plugin", "ID[,ID...]", "algorithm, or a chain of them: see `slim plugins list`", "compression.plugin",
       true},
      {"adapter", "ID", "model architecture (default: by config.json)", "model.adapter"},
      {"model", "DIR", "Hugging Face checkpoint to compress", "model.path"},
      {"calib", "PATH", "calibration data: JSONL, parquet, text, or a folder of images", "dataset.path"},
      {"output", "DIR", "where the compressed checkpoint goes", "output.path"},
      {"config", "FILE", "TOML or YAML file; flags and --set override it", ""},
      {"scheme", "NAME", "w4a16, w4a16_asym, w8a8, fp8_dynamic, ... (default: the plugin's)", kSchemeKey},
      {"group-size", "N", "input channels that share a scale; -1: whole rows", quantization + "group_size"},
      {"format", "ID", "see `slim plugins list` (default: what the scheme's users expect)", "output.format"},
      {"ignore", "NAME", "a layer to leave in float: name, glob or re:... (repeatable)",
       quantization + "ignore_layers", true},
      {"rule", "MATCH=SCHEME[:ID]", "another scheme (or none) and algorithm for some layers (repeatable)",
       "compression.rule", true},
      {"kv-cache", "TYPE", "fp8: write scales for an FP8 key/value cache", quantization + "kv_cache"},
      {"quant-vit", "", "compress the vision tower too", quantization + "quant_vit"},
      {"num-samples", "N", "calibration samples", "dataset.num_samples"},
      {"max-seq-length", "N", "tokens of a sample", "dataset.max_seq_length"},
      {"batch-size", "N", "samples that run together", "dataset.batch_size"},
      {"shuffle", "", "draw samples at random", "dataset.shuffle"},
      {"skip-bad-samples", "", "count malformed samples instead of stopping", "dataset.skip_bad_samples"},
      {"allow-outside", "", "images may lie outside the data set's folder", "dataset.allow_outside"},
      {"split", "NAME", "train, test, ...: which files of a data set's folder", "dataset.split"},
      {"calib-prompt", "TEXT", "question about each picture of a folder of images", "dataset.prompt"},
      {"seed", "N", "of everything random", "run.seed"},
      {"backend", "ID", "cpu, cuda, npu (default: the best that opens; see `slim doctor`)", "run.backend"},
      {"kernels", "KIND", "fast | reference: the backend's kernels, or the core's plain ones", "run.kernels"},
      {"dtype", "TYPE", "auto | float32 | bfloat16 | float16", "run.dtype"},
      {"threads", "N", "CPU threads", "run.threads"},
      {"max-memory", "BYTES", "limit of working memory, as 8GiB", "run.max_memory"},
      {"max-vram", "BYTES", "limit of the device's memory, as 8GiB", "run.max_vram"},
      {"save-statistics", "FILE", "keep what calibration finds, for --statistics", "run.save_statistics"},
      {"statistics", "FILE", "what an earlier run kept, instead of calibration data", "run.statistics"},
      {"resume", "", "go on where an interrupted run into the same output stopped", "run.resume"},
      {"stop-after-blocks", "N", "stop after so many blocks, for --resume", "run.stop_after_blocks"},
      {"engine", "NAME", "vllm, transformers, lmdeploy, vllm-ascend: refuse what it would not load",
       "output.engine"},
      {"tp", "N", "devices that the engine cuts the model for", "output.tensor_parallel"},
      {"output-dtype", "DTYPE", "of what stays in float", "output.dtype"},
      {"max-shard-size", "BYTES", "largest file of tensors, as 5GB", "output.max_shard_size"},
      {"overwrite", "", "replace an existing output folder", "output.overwrite"},
      {"set", "KEY=VALUE", "any configuration key, or plugin.option (repeatable)", "", true},
      {"help-keys", "", "list the keys of configuration files", ""}};
}

std::vector<std::string> split_ids(const std::vector<std::string>& values) {
  std::vector<std::string> ids;
  for (const std::string& value : values) {
    for (size_t begin = 0; begin <= value.size();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      if (end > begin) ids.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return ids;
}

/// The configuration keys that flags set.
void add_flags(const Arguments& arguments, std::vector<Setting>& settings) {
  for (const Flag& flag : run_flags() + common_flags()) {
    if (flag.key.empty() || !arguments.has(flag.name)) continue;
    const auto& values = arguments.all(flag.name);
    settings.push_back({flag.key, flag.name == "plugin" ? split_ids(values) : values, "--" + flag.name});
  }
}

/// --set of a scheme's name starts the scheme over, so it comes before flags that refine it.
void add_assignments(const std::vector<std::string>& assignments, bool scheme_names,
                     std::vector<Setting>& settings) {
  for (const std::string& assignment : assignments) {
    const bool names_scheme = assignment.starts_with(kSchemeKey + "=");
    if (names_scheme == scheme_names) settings.push_back({assignment, {}, ""});
  }
}

Result<std::unique_ptr<Session>> open_session(const Arguments& arguments) {
  if (!arguments.positional().empty()) {
    return Status(Code::kInvalidArgument, "unexpected argument '" + arguments.positional()[0] + "'");
  }
  SLIM_TRY(plugin_dirs(arguments).status());
  SessionOptions options;
  options.config_file = arguments.text("config");
  add_assignments(arguments.all("set"), true, options.settings);
  add_flags(arguments, options.settings);
  add_assignments(arguments.all("set"), false, options.settings);
  return Session::open(options);
}

int run_quantize(const Arguments& arguments) {
  if (arguments.has("help-keys")) return print(config_keys_help());
  const auto session = open_session(arguments);
  if (!session.ok()) return fail(session.status());
  catch_interrupts(/*resumable=*/true);
  auto progress = make_progress(arguments.has("quiet"));
  const Status status = (*session)->run(*progress);
  progress.reset();  // ends its line before anything else is printed
  return status.ok() ? print((*session)->report(), arguments.has("json")) : fail(status);
}

int run_plan(const Arguments& arguments) {
  if (arguments.has("help-keys")) return print(config_keys_help());
  const auto session = open_session(arguments);
  if (!session.ok()) return fail(session.status());
  return print((*session)->plan(), arguments.has("json"));
}

}  // namespace

Command quantize_command() {
  return {"", "--plugin ID --model DIR --output DIR [--calib PATH] [--config FILE] [options]",
          "compress a checkpoint", run_flags() + common_flags(), &run_quantize};
}

Command plan_command() {
  return {"plan", "plan --plugin ID --model DIR [options]",
          "what would happen: per tensor, memory, output size", run_flags() + common_flags(), &run_plan};
}

}  // namespace slim::cli
