#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "slim/algorithm.hpp"
#include "slim/status.hpp"

namespace slim {

/// What is done to the layers that a rule matches.
struct LayerRule {
  std::vector<std::string> match;    ///< names, globs, "re:..."
  std::string scheme;                ///< empty: the run's; "none": left in float
  std::vector<std::string> plugins;  ///< the chain; empty: the run's
  int64_t group_size = 0;  ///< 0: the scheme's (the run's if the scheme is the run's); -1: whole rows

  /// "re:.*down_proj=w8a16:rtn": how messages name it, and how --rule says it.
  SLIM_API std::string text() const;
};

/// One [[output]] of several: what it says differently from the rest of the configuration.
struct OutputConfig {
  std::string origin;  ///< "run.toml:12", for messages
  std::vector<std::pair<std::string, std::vector<std::string>>>
      settings;                                 ///< configuration keys and their values
  std::optional<std::vector<LayerRule>> rules;  ///< instead of the configuration's
};

/// Everything that one quantization run is told, from a TOML file and flags. Key names of the file stand beside each field;
/// the table of all keys is in run_config.cpp.
struct RunConfig {
  // [model]
  std::string model;    ///< model.path: a Hugging Face checkpoint folder
  std::string adapter;  ///< model.adapter: empty: by config.json's model_type
  // [compression]
  std::vector<std::string> plugins;  ///< compression.plugin: the chain, ids or paths
  std::map<std::string, Options>
      plugin_options;  ///< [compression.<plugin id>], not yet checked against the plugin's schema
  // [compression.quantization]
  std::string scheme;      ///< name / quant_method / bits: "w4a16"; empty: the plugin's default
  int64_t group_size = 0;  ///< group_size: 0: the scheme's; -1: whole rows
  std::map<std::string, std::string>
      scheme_keys;                ///< what was said of the scheme; `scheme` and `group_size` follow from it
  std::string kv_cache = "none";  ///< kv_cache: "fp8": scales of an FP8 key/value cache are written too
  std::vector<LayerRule> rules;   ///< [[rule]] or compression.rule: the first that matches a layer decides
  std::vector<std::string> ignore_layers;  ///< names, globs, "re:..."; added to the adapter's defaults
  bool quant_vit = false;                  ///< quant_vit: the vision tower too
  std::string indivisible =
      "auto";  ///< group_size_fallback: "error", "skip", "channel" or "auto" where the group does not divide the width
  // [dataset]
  std::string calib;  ///< dataset.path
  int64_t num_samples = 128, max_seq_length = 2048, batch_size = 8;
  bool shuffle = false, skip_bad_samples = false;
  std::string text_unit =
      "lines";                 ///< dataset.text: what of a .txt file is a sample: "lines", "file" or "pieces"
  bool allow_outside = false;  ///< images may lie outside the data set's folder
  std::string calib_prompt;    ///< dataset.prompt: the question for a folder of images
  std::string split;           ///< dataset.split: of a folder with several
  std::vector<std::string> columns;  ///< dataset.columns: "THEIRS=OURS"
  // [output]
  std::vector<OutputConfig>
      outputs;         ///< [[output]]: several checkpoints of one calibration; empty: the one below
  std::string output;  ///< output.path
  std::string format;  ///< output.format: empty: what the scheme's users expect
  /// output.dtype of what stays in float: auto, keep, float32, bfloat16, float16
  std::string output_dtype = "auto";
  std::string engine;           ///< output.engine: whose rules the output must meet; empty: none
  int64_t tensor_parallel = 1;  ///< output.tensor_parallel: devices of that engine
  int64_t max_shard_size = 5'000'000'000;
  bool overwrite = false;
  // [run]
  std::string backend = "auto";  ///< backend: a plugin's id; auto: the best that opens
  std::string kernels = "fast";  ///< kernels: reference: the core's plain ones instead of the backend's
  std::string dtype = "auto";    ///< compute dtype: auto (the checkpoint's), float32, bfloat16, float16
  std::string propagate =
      "auto";  ///< what the next block sees: "quantized", "float", or "auto": quantized where it can be
  std::string save_statistics;  ///< run.save_statistics: a file that keeps what calibration found
  std::string statistics;       ///< run.statistics: such a file, instead of calibration data
  bool all_experts = false;
  bool normalize_tokens = true;
  uint64_t seed = 0;
  int threads = 0;      ///< 0: LibTorch's choice
  bool resume = false;  ///< run.resume: go on where an interrupted run into the same output stopped
  int64_t stop_after_blocks =
      0;                   ///< run.stop_after_blocks: stop at a point where a run can be resumed; 0: never
  int64_t max_memory = 0;  ///< bytes; 0: no limit
  int64_t max_vram = 0;    ///< bytes of the device; 0: what it has
  std::vector<std::string> plugin_dirs;
};

/// Reads a TOML file into `config`, over what is there. Unknown keys, wrong types and values out of range are errors that
/// name file, line, key, and the nearest known key.
SLIM_API Status read_config_file(const std::string& path, RunConfig& config);
/// `--set key=value`, with the dotted keys of the TOML file ("compression.quantization.group_size=64"; lists as a,b), or
/// short for a plugin's option: "awq.grid=40".
SLIM_API Status set_config_value(const std::string& assignment, RunConfig& config);
/// The same with the value apart; several values, or none, are a list's.
SLIM_API Status set_config_key(const std::string& key, const std::vector<std::string>& values,
                               RunConfig& config);
/// After file, --set and flags: every [compression.<plugin id>] belongs to a plugin of the chain.
SLIM_API Status check_plugin_options(const RunConfig& config);
/// "MATCH=SCHEME[:PLUGIN[,PLUGIN]]", as --rule takes it.
SLIM_API Result<LayerRule> parse_rule(const std::string& text);
/// The configuration of each checkpoint that a run writes: itself, or one for each [[output]]. kInvalidArgument names the table.
SLIM_API Result<std::vector<RunConfig>> output_configs(const RunConfig& config);
/// Every key with type, range, other names and meaning, for people.
SLIM_API std::string config_keys_help();
/// "5GB", "512MiB", "1000000" in bytes.
SLIM_API Result<int64_t> parse_bytes(std::string_view);

}  // namespace slim
