#include "config/keys.h"

#include "config/dialects/angelslim.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>

#include "util/nearest.h"

namespace slim {
namespace {

// ---- setters of keys that are more than a field ---------------------------------------------------------------------

Status expected(const std::string& what) { return Status(Code::kInvalidArgument, "expected " + what); }

/// Keeps a word about the scheme until all of them are known.
template <const char* kWord>
Status keep_scheme_key(RunConfig& config, const std::string& text) {
  config.scheme_keys[kWord] = text;
  return {};
}
constexpr char kName[] = "name", kBits[] = "bits", kGroupSize[] = "group_size", kZeroPoint[] = "zero_point",
               kWeight[] = "weight", kActivation[] = "activation";

Status set_bytes(int64_t& field, const std::string& text) {
  SLIM_ASSIGN(field, parse_bytes(text));
  return {};
}
Status set_shard_size(RunConfig& config, const std::string& text) {
  SLIM_TRY(set_bytes(config.max_shard_size, text));
  return config.max_shard_size > 0 ? Status{} : expected("more than 0 bytes");
}
Status set_max_vram(RunConfig& config, const std::string& text) { return set_bytes(config.max_vram, text); }
Status set_max_memory(RunConfig& config, const std::string& text) {
  return set_bytes(config.max_memory, text);
}

/// Another tool names the model class; slim the adapter.
Status set_model_name(RunConfig& config, const std::string& text) {
  config.adapter = angelslim::adapter_of(text);
  return {};
}

Status set_device_map(RunConfig& config, const std::string& text) {
  if (text != "auto" && text != "distributed") config.backend = text;
  return {};
}

Status accept(RunConfig&, const std::string&) { return {}; }

// ---- the table --------------------------------------------------------------------------------------------------------

constexpr const char* kGranularities = "per-tensor|per-channel|per-group|per-block|per-token";
constexpr const char* kBool = "true|false";

void add_model_keys(std::vector<ConfigKey>& keys) {
  keys.push_back({"model.path",
                  {"model.model_path"},
                  &RunConfig::model,
                  "folder",
                  0,
                  INT64_MAX,
                  "the Hugging Face checkpoint to compress"});
  keys.push_back({"model.adapter",
                  {},
                  &RunConfig::adapter,
                  "plugin id",
                  0,
                  INT64_MAX,
                  "model architecture; default: what config.json's model_type says"});
  keys.push_back({"model.name",
                  {},
                  &set_model_name,
                  "name",
                  0,
                  INT64_MAX,
                  "the same, by the class names of AngelSlim (" + angelslim::model_classes() + ")"});
  keys.push_back({"model.device_map",
                  {},
                  &set_device_map,
                  "auto|distributed|cpu|cuda|npu",
                  0,
                  INT64_MAX,
                  "as run.backend; auto leaves it as it is"});
  for (const char* name : {"model.trust_remote_code", "model.low_cpu_mem_usage", "model.use_cache"}) {
    keys.push_back({name,
                    {},
                    &accept,
                    kBool,
                    0,
                    INT64_MAX,
                    "accepted for files written for AngelSlim, without effect: slim runs no Python and "
                    "streams weights"});
  }
}

void add_compression_keys(std::vector<ConfigKey>& keys) {
  const std::string section = "compression.quantization.";
  keys.push_back(
      {"compression.plugin",
       {"compression.name", "compression.algorithm"},
       &RunConfig::plugins,
       "plugin id, or a list of them",
       0,
       INT64_MAX,
       "the chain of algorithms; quantization.name alone implies it when it is PTQ or quantization"});
  keys.push_back(
      {section + "name",
       {section + "scheme"},
       &keep_scheme_key<kName>,
       "scheme",
       0,
       INT64_MAX,
       "w4a16, fp8_dynamic, ...; also AngelSlim's int4_awq, int4_gptq, int8_dynamic, fp8_blockwise"});
  keys.push_back({section + "bits",
                  {},
                  &keep_scheme_key<kBits>,
                  "2|3|4|8",
                  0,
                  INT64_MAX,
                  "bits of a weight; without a name it stands for w<bits>a16"});
  keys.push_back({section + "group_size",
                  {section + "quant_method.group_size"},
                  &keep_scheme_key<kGroupSize>,
                  "integer",
                  0,
                  INT64_MAX,
                  "input channels that share a scale; -1: whole rows; 0: the scheme's own"});
  keys.push_back({section + "zero_point",
                  {section + "quant_method.zero_point"},
                  &keep_scheme_key<kZeroPoint>,
                  kBool,
                  0,
                  INT64_MAX,
                  "asymmetric weights (the *_asym schemes)"});
  keys.push_back({section + "quant_method",
                  {section + "quant_method.weight"},
                  &keep_scheme_key<kWeight>,
                  kGranularities,
                  0,
                  INT64_MAX,
                  "which weights share a scale; must agree with the scheme"});
  keys.push_back({section + "quant_method.activation",
                  {},
                  &keep_scheme_key<kActivation>,
                  "none|per-tensor|per-token|per-group",
                  0,
                  INT64_MAX,
                  "how inputs are quantized; per-tensor is static, per-token dynamic"});
  keys.push_back({section + "kv_cache",
                  {},
                  &RunConfig::kv_cache,
                  "none|fp8",
                  0,
                  INT64_MAX,
                  "fp8: scales for an FP8 key/value cache, from the keys and values of the calibration"});
  keys.push_back({"compression.rule",
                  {},
                  &RunConfig::rules,
                  "list of MATCH=SCHEME[:PLUGIN[,PLUGIN]]",
                  0,
                  INT64_MAX,
                  "schemes by layer: the first match (name, glob, \"re:...\") decides; scheme none: left in "
                  "float; also as "
                  "tables: [[rule]] with match, scheme, algorithm, group_size"});
  keys.push_back({section + "ignore_layers",
                  {section + "ignore"},
                  &RunConfig::ignore_layers,
                  "list",
                  0,
                  INT64_MAX,
                  "layers that stay in float besides the adapter's own: names, globs, \"re:...\""});
  keys.push_back(
      {section + "quant_vit", {}, &RunConfig::quant_vit, "", 0, INT64_MAX, "compress the vision tower too"});
  keys.push_back({section + "group_size_fallback",
                  {},
                  &RunConfig::indivisible,
                  "auto|error|skip|channel",
                  0,
                  INT64_MAX,
                  "a layer whose width the group size does not divide: error; skip (stays in float); channel "
                  "(one scale a "
                  "row); auto: an error where the size was asked for, else a smaller size that divides every "
                  "layer, and skip"});
  keys.push_back({section + "save_name", {}, &RunConfig::format, "format", 0, INT64_MAX, "as output.format"});
  keys.push_back(
      {section + "quant_method.mse_range",
       {},
       &accept,
       kBool,
       0,
       INT64_MAX,
       "accepted for files written for AngelSlim, without effect: awq.clip says how ranges are searched"});
  keys.push_back({section + "low_memory",
                  {},
                  &accept,
                  kBool,
                  0,
                  INT64_MAX,
                  "accepted, without effect: slim always works block by block (see run.max_memory)"});
}

void add_dataset_keys(std::vector<ConfigKey>& keys) {
  keys.push_back({"dataset.path",
                  {"dataset.data_path"},
                  &RunConfig::calib,
                  "file or folder",
                  0,
                  INT64_MAX,
                  "calibration data: JSONL of chats, parquet, text, or a folder of images"});
  keys.push_back(
      {"dataset.num_samples", {}, &RunConfig::num_samples, "", 1, 1'000'000, "how many samples are used"});
  keys.push_back({"dataset.max_seq_length",
                  {"global.max_seq_length"},
                  &RunConfig::max_seq_length,
                  "",
                  1,
                  1'000'000,
                  "tokens of a sample; longer ones are cut"});
  keys.push_back(
      {"dataset.batch_size", {}, &RunConfig::batch_size, "", 1, 65'536, "samples that run together"});
  keys.push_back({"dataset.shuffle",
                  {},
                  &RunConfig::shuffle,
                  "",
                  0,
                  INT64_MAX,
                  "draw the samples at random (run.seed)"});
  keys.push_back({"dataset.skip_bad_samples",
                  {},
                  &RunConfig::skip_bad_samples,
                  "",
                  0,
                  INT64_MAX,
                  "count malformed samples instead of stopping"});
  keys.push_back(
      {"dataset.text",
       {},
       &RunConfig::text_unit,
       "lines|file|pieces",
       0,
       INT64_MAX,
       "of a .txt file: every line is a sample; the file is one, cut to max_seq_length; or it is cut "
       "into samples of max_seq_length tokens"});
  keys.push_back({"dataset.allow_outside",
                  {},
                  &RunConfig::allow_outside,
                  "",
                  0,
                  INT64_MAX,
                  "images may lie outside the data set's folder"});
  keys.push_back({"dataset.split",
                  {},
                  &RunConfig::split,
                  "train|test|validation|...",
                  0,
                  INT64_MAX,
                  "which of a folder's files; default: all, or train where there are several"});
  keys.push_back({"dataset.columns",
                  {},
                  &RunConfig::columns,
                  "list of THEIRS=OURS",
                  0,
                  INT64_MAX,
                  "names of keys or columns that slim has other names for, as caption_de=text"});
  keys.push_back({"dataset.prompt",
                  {"dataset.calib_prompt"},
                  &RunConfig::calib_prompt,
                  "text",
                  0,
                  INT64_MAX,
                  "the question asked about each picture of a folder of images"});
  keys.push_back({"dataset.name",
                  {},
                  &accept,
                  "TextDataset|MultiModalDataset",
                  0,
                  INT64_MAX,
                  "accepted, without effect: the kind of data is found from the files"});
}

void add_output_keys(std::vector<ConfigKey>& keys) {
  keys.push_back({"output.path",
                  {"output.save_path", "global.save_path"},
                  &RunConfig::output,
                  "folder",
                  0,
                  INT64_MAX,
                  "the compressed checkpoint"});
  keys.push_back({"output.format",
                  {},
                  &RunConfig::format,
                  "plugin id",
                  0,
                  INT64_MAX,
                  "compressed-tensors, awq, gptq, ascend; default: what users of the scheme expect"});
  keys.push_back(
      {"output.dtype",
       {},
       &RunConfig::output_dtype,
       "auto|keep|float32|bfloat16|float16",
       0,
       INT64_MAX,
       "of what stays in float, and of scales; keep: as it is stored; auto: what config.json says, "
       "where the checkpoint is in float32 and it says 16 bits"});
  keys.push_back({"output.engine",
                  {},
                  &RunConfig::engine,
                  "vllm, transformers, lmdeploy, vllm-ascend",
                  0,
                  INT64_MAX,
                  "refuse, before any work, what this engine would not load or run"});
  keys.push_back({"output.tensor_parallel",
                  {},
                  &RunConfig::tensor_parallel,
                  "",
                  1,
                  INT64_MAX,
                  "devices that the engine cuts the model for"});
  keys.push_back({"output.max_shard_size",
                  {},
                  &set_shard_size,
                  "bytes, as 5GB or 512MiB",
                  0,
                  INT64_MAX,
                  "largest file of tensors"});
  keys.push_back(
      {"output.overwrite", {}, &RunConfig::overwrite, "", 0, INT64_MAX, "replace an existing output folder"});
}

void add_run_keys(std::vector<ConfigKey>& keys) {
  keys.push_back({"run.backend",
                  {},
                  &RunConfig::backend,
                  "plugin id",
                  0,
                  INT64_MAX,
                  "device: cpu, cuda, npu; auto: the best that opens (`slim doctor` tells which do)"});
  keys.push_back({"run.kernels",
                  {},
                  &RunConfig::kernels,
                  "fast|reference",
                  0,
                  INT64_MAX,
                  "the backend's kernels, or the plain ones of the core, for comparisons"});
  keys.push_back({"run.dtype",
                  {"model.torch_dtype"},
                  &RunConfig::dtype,
                  "auto|float32|bfloat16|float16",
                  0,
                  INT64_MAX,
                  "of the forward pass; auto: the checkpoint's"});
  keys.push_back(
      {"run.propagate",
       {},
       &RunConfig::propagate,
       "auto|quantized|float",
       0,
       INT64_MAX,
       "what the next block sees; auto: quantized, but float with several outputs or kept statistics"});
  keys.push_back({"run.save_statistics",
                  {},
                  &RunConfig::save_statistics,
                  "file",
                  0,
                  INT64_MAX,
                  "keep what calibration finds, for run.statistics"});
  keys.push_back({"run.statistics",
                  {},
                  &RunConfig::statistics,
                  "file",
                  0,
                  INT64_MAX,
                  "what an earlier run kept, instead of calibration data"});
  keys.push_back({"run.all_experts",
                  {},
                  &RunConfig::all_experts,
                  "",
                  0,
                  INT64_MAX,
                  "show every token to every expert while calibrating"});
  keys.push_back({"run.normalize_tokens",
                  {},
                  &RunConfig::normalize_tokens,
                  "",
                  0,
                  INT64_MAX,
                  "every token weighs alike in the errors that awq, gptq and sparse minimize; false: by its "
                  "energy, as in "
                  "other tools"});
  keys.push_back({"run.seed", {}, &RunConfig::seed, "", 0, INT64_MAX, "of everything random"});
  keys.push_back({"run.threads", {}, &RunConfig::threads, "", 0, 4096, "CPU threads; 0: LibTorch's choice"});
  keys.push_back({"run.max_memory",
                  {},
                  &set_max_memory,
                  "bytes, as 8GB or 512MiB",
                  0,
                  INT64_MAX,
                  "limit of working memory; 0: none"});
  keys.push_back({"run.max_vram",
                  {},
                  &set_max_vram,
                  "bytes, as 8GB or 512MiB",
                  0,
                  INT64_MAX,
                  "limit of the device's memory, for --backend cuda and npu; 0: what it has"});
  keys.push_back({"run.resume",
                  {},
                  &RunConfig::resume,
                  "",
                  0,
                  INT64_MAX,
                  "go on where an interrupted run into the same output stopped"});
  keys.push_back({"run.stop_after_blocks",
                  {},
                  &RunConfig::stop_after_blocks,
                  "",
                  0,
                  INT64_MAX,
                  "stop after so many blocks of the model, for run.resume; 0: never"});
  keys.push_back({"run.plugin_dirs",
                  {},
                  &RunConfig::plugin_dirs,
                  "list of folders",
                  0,
                  INT64_MAX,
                  "where plugins are looked for first"});
}

std::vector<ConfigKey> make_keys() {
  std::vector<ConfigKey> keys;
  add_model_keys(keys);
  add_compression_keys(keys);
  add_dataset_keys(keys);
  add_output_keys(keys);
  add_run_keys(keys);
  return keys;
}

// ---- conversion -------------------------------------------------------------------------------------------------------

std::vector<std::string> choices(const std::string& values) {
  std::vector<std::string> result;
  if (values.find('|') == std::string::npos) return result;
  for (size_t begin = 0; begin <= values.size();) {
    const size_t end = std::min(values.find('|', begin), values.size());
    result.push_back(values.substr(begin, end - begin));
    begin = end + 1;
  }
  return result;
}

Status wrong(const ConfigValue& value, const std::string& want) {
  const auto found = text_of(value);
  return Status(Code::kInvalidArgument,
                (found ? "found '" + *found + "'" : "found a list") + ", expected " + want);
}

template <class Integer>
Status assign_integer(const ConfigKey& key, const ConfigValue& value, Integer& field) {
  const std::string want = key.maximum == INT64_MAX ? "an integer of at least " + std::to_string(key.minimum)
                                                    : "an integer from " + std::to_string(key.minimum) +
                                                          " to " + std::to_string(key.maximum);
  std::optional<int64_t> number;
  if (const auto* integer = std::get_if<int64_t>(&value.data)) number = *integer;
  if (const auto* text = std::get_if<std::string>(&value.data); text && value.is_text) {
    int64_t parsed = 0;
    const char* const end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, parsed);
    if (error == std::errc{} && stop == end) number = parsed;
  }
  if (!number || *number < key.minimum || *number > key.maximum) return wrong(value, want);
  field = static_cast<Integer>(*number);
  return {};
}

Status assign_rules(const ConfigValue& value, std::vector<LayerRule>& rules) {
  std::vector<std::string> texts;
  if (const auto* list = std::get_if<std::vector<std::string>>(&value.data))
    texts = *list;
  else if (const auto* text = std::get_if<std::string>(&value.data))
    texts = {*text};
  else
    return wrong(value, "a text or a list of texts");
  rules.clear();
  for (const std::string& text : texts) {
    SLIM_ASSIGN(LayerRule rule, parse_rule(text));
    rules.push_back(std::move(rule));
  }
  return {};
}

Status assign_bool(const ConfigValue& value, bool& field) {
  if (const auto* flag = std::get_if<bool>(&value.data)) {
    field = *flag;
    return {};
  }
  const auto* text = std::get_if<std::string>(&value.data);
  if (!value.is_text || !text || (*text != "true" && *text != "false")) return wrong(value, "true or false");
  field = *text == "true";
  return {};
}

/// Text of a scalar, "per_channel" written as "per-channel" where only given words are allowed.
Result<std::string> checked_text(const ConfigKey& key, const ConfigValue& value) {
  const std::vector<std::string> allowed = choices(key.values);
  const auto text = text_of(value);
  const bool custom = std::holds_alternative<ConfigKey::Custom>(key.target);
  const bool string = std::holds_alternative<std::string>(value.data);
  if (!text || (!string && !custom)) return wrong(value, key.values.empty() ? "a text" : key.values);
  if (allowed.empty() || std::find(allowed.begin(), allowed.end(), *text) != allowed.end()) return *text;
  std::string hyphenated = *text;
  std::replace(hyphenated.begin(), hyphenated.end(), '_', '-');
  if (std::find(allowed.begin(), allowed.end(), hyphenated) != allowed.end()) return hyphenated;
  const Status status = wrong(value, "one of " + join(allowed));
  return Status(status.code(), status.message() + did_you_mean(*text, allowed));
}

/// A list, or one text as a list of one.
Status assign_list(const ConfigValue& value, std::vector<std::string>& field) {
  if (const auto* list = std::get_if<std::vector<std::string>>(&value.data)) {
    field = *list;
    return {};
  }
  const auto* text = std::get_if<std::string>(&value.data);
  if (!text) return wrong(value, "a text or a list of texts");
  field = {*text};
  return {};
}

// ---- the listing ------------------------------------------------------------------------------------------------------

/// What values a key takes.
std::string type_text(const ConfigKey& key) {
  if (!key.values.empty()) return key.values;
  if (std::holds_alternative<bool RunConfig::*>(key.target)) return "true|false";
  if (key.maximum == INT64_MAX) return "integer >= " + std::to_string(key.minimum);
  return "integer " + std::to_string(key.minimum) + ".." + std::to_string(key.maximum);
}

std::string rules_text(const std::vector<LayerRule>& rules) {
  std::vector<std::string> texts;
  for (const LayerRule& rule : rules)
    texts.push_back(rule.text() + (rule.group_size ? " group " + std::to_string(rule.group_size) : ""));
  return join(texts, "; ");
}

/// Its value; "" for none, and for a key that is more than a field.
std::string value_text(const ConfigKey& key, const RunConfig& config) {
  return std::visit(
      [&](auto target) -> std::string {
        using Target = decltype(target);
        if constexpr (std::is_same_v<Target, std::string RunConfig::*>) {
          return config.*target;
        } else if constexpr (std::is_same_v<Target, bool RunConfig::*>) {
          return config.*target ? "true" : "false";
        } else if constexpr (std::is_same_v<Target, std::vector<std::string> RunConfig::*>) {
          return join(config.*target);
        } else if constexpr (std::is_same_v<Target, std::vector<LayerRule> RunConfig::*>) {
          return rules_text(config.*target);
        } else if constexpr (std::is_same_v<Target, ConfigKey::Custom>) {
          return "";
        } else {
          return std::to_string(config.*target);
        }
      },
      key.target);
}

/// Its value in a fresh RunConfig.
std::string default_text(const ConfigKey& key) {
  static const RunConfig defaults;
  return value_text(key, defaults);
}

std::string describe(const ConfigKey& key, size_t section_size) {
  const std::string fallback = default_text(key);
  std::string text = key.name.substr(section_size) + " = <" + type_text(key) + ">";
  if (!fallback.empty()) text += "  (default " + fallback + ")";
  text += "\n    " + key.doc + "\n";
  if (!key.aliases.empty()) text += "    also: " + join(key.aliases) + "\n";
  return text;
}

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = make_keys();
  return keys;
}

const ConfigKey* find_config_key(std::string_view name) {
  for (const ConfigKey& key : config_keys()) {
    const bool alias = std::find(key.aliases.begin(), key.aliases.end(), name) != key.aliases.end();
    if (key.name == name || alias) return &key;
  }
  return nullptr;
}

std::map<std::string, std::string> config_values(const RunConfig& config) {
  std::map<std::string, std::string> values;
  for (const ConfigKey& key : config_keys()) {
    if (const std::string text = value_text(key, config); !text.empty()) values[key.name] = text;
  }
  for (const auto& [word, text] : config.scheme_keys) values["compression.quantization." + word] = text;
  values["output.max_shard_size"] = std::to_string(config.max_shard_size);
  for (const auto& [plugin, options] : config.plugin_options) {
    for (const auto& [option, text] : options) values["compression." + plugin + "." + option] = text;
  }
  for (size_t i = 0; i < config.outputs.size(); ++i) {
    const std::string prefix = "output " + std::to_string(i + 1) + " ";
    for (const auto& [key, texts] : config.outputs[i].settings) values[prefix + key] = join(texts);
    if (config.outputs[i].rules) values[prefix + "rules"] = rules_text(*config.outputs[i].rules);
  }
  return values;
}

std::vector<std::string> config_key_names() {
  std::vector<std::string> names;
  for (const ConfigKey& key : config_keys()) {
    names.push_back(key.name);
    names.insert(names.end(), key.aliases.begin(), key.aliases.end());
  }
  return names;
}

Status assign(const ConfigKey& key, const ConfigValue& value, RunConfig& config) {
  return std::visit(
      [&](auto target) -> Status {
        using Target = decltype(target);
        if constexpr (std::is_same_v<Target, ConfigKey::Custom>) {
          SLIM_ASSIGN(const std::string text, checked_text(key, value));
          return target(config, text);
        } else if constexpr (std::is_same_v<Target, std::string RunConfig::*>) {
          SLIM_ASSIGN(config.*target, checked_text(key, value));
          return {};
        } else if constexpr (std::is_same_v<Target, std::vector<std::string> RunConfig::*>) {
          return assign_list(value, config.*target);
        } else if constexpr (std::is_same_v<Target, std::vector<LayerRule> RunConfig::*>) {
          return assign_rules(value, config.*target);
        } else if constexpr (std::is_same_v<Target, bool RunConfig::*>) {
          return assign_bool(value, config.*target);
        } else {
          return assign_integer(key, value, config.*target);
        }
      },
      key.target);
}

std::optional<std::string> text_of(const ConfigValue& value) {
  if (const auto* text = std::get_if<std::string>(&value.data)) return *text;
  if (const auto* flag = std::get_if<bool>(&value.data)) return std::string(*flag ? "true" : "false");
  if (const auto* integer = std::get_if<int64_t>(&value.data)) return std::to_string(*integer);
  if (const auto* number = std::get_if<double>(&value.data)) {
    char text[32];  // the longest double has 24 characters
    const auto [end, error] = std::to_chars(text, text + sizeof text, *number);
    return std::string(text, end);
  }
  return std::nullopt;
}

std::string config_keys_help() {
  std::string help = "Keys of a configuration file; each also as --set key=value.\n";
  std::string section;
  for (const ConfigKey& key : config_keys()) {
    const size_t dot = key.name.rfind('.');
    const size_t table_end =
        key.name.starts_with("compression.quantization") ? strlen("compression.quantization") : dot;
    if (const std::string table = key.name.substr(0, table_end); table != section) {
      help += "\n[" + table + "]\n";
      section = table;
    }
    help += describe(key, section.size() + 1);
  }
  return help;
}

}  // namespace slim
