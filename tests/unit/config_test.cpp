#include "config/run_config.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "config/keys.h"
#include "slim/scheme.hpp"

using namespace slim;
namespace fs = std::filesystem;

namespace {

/// Reads a text as a configuration file.
Status read(const std::string& text, RunConfig& config, const char* extension = ".toml") {
  const fs::path path =
      fs::temp_directory_path() / ("slim_config_test_" + std::to_string(getpid()) + extension);
  std::ofstream(path) << text;
  const Status status = read_config_file(path.string(), config);
  fs::remove(path);
  return status;
}

RunConfig read_ok(const std::string& text) {
  RunConfig config;
  const Status status = read(text, config);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return config;
}

void check_error(const std::string& text, const std::vector<std::string>& parts) {
  RunConfig config;
  const Status status = read(text, config);
  CHECK_MESSAGE(status.code() == Code::kInvalidArgument, text);
  for (const std::string& part : parts)
    CHECK_MESSAGE(status.message().find(part) != std::string::npos, status.message());
}

std::string quantization(const std::string& lines) { return "[compression.quantization]\n" + lines; }

}  // namespace

TEST_CASE("config/ every shipped file loads and names a plugin and a scheme that exist") {
  const char* source = std::getenv("SLIM_SOURCE_DIR");
  REQUIRE(source);
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(std::string(source) + "/configs")) {
    if (entry.path().extension() != ".toml") continue;
    RunConfig config;
    const Status status = read_config_file(entry.path().string(), config);
    CHECK_MESSAGE(status.ok(), status.message());
    CHECK_MESSAGE(!config.plugins.empty(), entry.path().string());
    CHECK_MESSAGE(scheme_from_name(config.scheme, config.group_size).ok(), entry.path().string());
    CHECK_MESSAGE(check_plugin_options(config).ok(), entry.path().string());
    ++files;
  }
  CHECK(files > 0);
}

TEST_CASE("config/ every shipped file means the same in both dialects of quant_method") {
  const char* source = std::getenv("SLIM_SOURCE_DIR");
  REQUIRE(source);
  for (const auto& entry : fs::recursive_directory_iterator(std::string(source) + "/configs")) {
    if (entry.path().extension() != ".toml") continue;
    std::ifstream stream(entry.path());
    std::string shipped, plain, table;
    for (std::string line; std::getline(stream, line);) {
      const bool method = line.starts_with("quant_method = ");
      shipped += line + "\n";
      const std::string value = method ? line.substr(strlen("quant_method = ")) : "";
      const size_t quote = value.find('"');
      const std::string weight = method ? value.substr(quote, value.find('"', quote + 1) + 1 - quote) : "";
      plain += method ? "quant_method = " + weight + "\n" : line + "\n";
      table += method ? value.starts_with("{") ? line + "\n" : "quant_method = { weight = " + weight + " }\n"
                      : line + "\n";
    }
    INFO(entry.path().string());
    CHECK(plain != table);
    const RunConfig expected = read_ok(shipped);
    for (const std::string& text : {plain, table}) {
      const RunConfig config = read_ok(text);
      CHECK(config.scheme == expected.scheme);
      CHECK(config.group_size == expected.group_size);
      CHECK(config.plugins == expected.plugins);
    }
  }
}

TEST_CASE("config/ AngelSlim's class names stand for adapters") {
  for (const auto& [name, adapter] : {std::pair("Qwen", "qwen"),
                                      {"QwenVL", "qwen2_5_vl"},
                                      {"Qwen3VL", "qwen3vl"},
                                      {"Qwen3VLMoE", "qwen3vl"},
                                      {"HunyuanDense", "hunyuan"},
                                      {"HunyuanMoE", "hunyuan"},
                                      {"Llama", "qwen"},
                                      {"qwen3vl", "qwen3vl"}}) {
    CHECK(read_ok(std::string("[model]\nname = '") + name + "'\n").adapter == adapter);
  }
}

TEST_CASE("config/ a file sets every kind of value") {
  const RunConfig config = read_ok(R"(
[model]
path = "/models/x"
[compression]
plugin = ["awq", "gptq"]
[compression.quantization]
name = "w4a16"
group_size = 64
ignore_layers = ["lm_head", "re:.*gate$"]
quant_vit = true
[compression.awq]
grid = 40
damp = 0.5
clip = false
objective = "gram"
[dataset]
path = "calib.jsonl"
num_samples = 16
[output]
max_shard_size = "512MiB"
[run]
max_memory = 1000000
seed = 7
)");
  CHECK(config.model == "/models/x");
  CHECK(config.plugins == std::vector<std::string>{"awq", "gptq"});
  CHECK(config.scheme == "w4a16");
  CHECK(config.group_size == 64);
  CHECK(config.ignore_layers == std::vector<std::string>{"lm_head", "re:.*gate$"});
  CHECK(config.quant_vit);
  CHECK(config.plugin_options.at("awq") ==
        Options{{"grid", "40"}, {"damp", "0.5"}, {"clip", "false"}, {"objective", "gram"}});
  CHECK(config.num_samples == 16);
  CHECK(config.max_shard_size == 512 * 1024 * 1024);
  CHECK(config.max_memory == 1'000'000);
  CHECK(config.seed == 7);
  CHECK(config.batch_size == RunConfig().batch_size);
}

TEST_CASE("config/ AngelSlim's words mean the same here") {
  const RunConfig config = read_ok(R"(
[global]
save_path = "./output"
[model]
name = "Qwen3VL"
model_path = "/models/x"
trust_remote_code = true
torch_dtype = "auto"
device_map = "auto"
[compression]
name = "PTQ"
[compression.quantization]
name = "int4_awq"
bits = 4
quant_method = { weight = "per-group", group_size = 128, zero_point = true }
ignore_layers = ["lm_head"]
low_memory = true
[dataset]
name = "MultiModalDataset"
data_path = "./calib.jsonl"
)");
  CHECK(config.output == "./output");
  CHECK(config.adapter == "qwen3vl");
  CHECK(config.model == "/models/x");
  CHECK(config.plugins == std::vector<std::string>{"awq"});
  CHECK(config.scheme == "w4a16_asym");
  CHECK(config.group_size == 128);
  CHECK(config.calib == "./calib.jsonl");
  CHECK(read_ok(quantization("name = 'int4_awq'\nquant_method = { zero_point = false }")).scheme == "w4a16");
  const RunConfig fp8 = read_ok(quantization("name = 'fp8_static'\nquant_method = 'per-tensor'"));
  CHECK(fp8.plugins == std::vector<std::string>{"fp8"});
  CHECK(fp8.scheme == "fp8_static");
  CHECK(read_ok(quantization("name = 'fp8_static'\nquant_method = 'per-channel'")).scheme ==
        "fp8_static_channel");
  CHECK(read_ok(quantization("name = 'fp8_dynamic'\nquant_method = 'per-tensor'")).scheme ==
        "fp8_dynamic_tensor");
  CHECK(read_ok(quantization("name = 'fp8_dynamic'")).scheme == "fp8_dynamic");
  CHECK(read_ok(quantization("name = 'fp8_blockwise'")).scheme == "fp8_block");
  CHECK(read_ok(quantization("name = 'int8_dynamic'")).scheme == "w8a8");
}

TEST_CASE("config/ bits, zero points and granularities make up a scheme") {
  const auto scheme = [](const std::string& lines) { return read_ok(quantization(lines)); };
  CHECK(scheme("bits = 4").scheme == "w4a16");
  CHECK(scheme("bits = 3\nzero_point = true").scheme == "w3a16_asym");
  CHECK(scheme("bits = 8\nquant_method = { weight = 'per_channel', activation = 'per_token' }").scheme ==
        "w8a8");
  CHECK(scheme("bits = 8\nquant_method = { activation = 'per-tensor' }").scheme == "w8a8_static");
  CHECK(scheme("bits = 4\nquant_method = 'per-channel'").group_size == -1);
  CHECK(scheme("name = 'w8a8'\nquant_method = 'per-channel'").group_size == 0);
}

TEST_CASE("config/ words about the scheme that contradict each other are errors") {
  check_error(quantization("name = 'w4a16'\nbits = 8"), {"bits = 8", "w4a16", "4 bits"});
  check_error(quantization("name = 'w4a16'\nzero_point = true"), {"zero_point", "w4a16"});
  check_error(quantization("name = 'fp8_block'\nquant_method = 'per-tensor'"),
              {"per-tensor", "fp8_block", "per-block"});
  check_error(quantization("name = 'w8a8'\nquant_method = { activation = 'per-tensor' }"),
              {"per-tensor", "per-token"});
  check_error(quantization("bits = 4\nquant_method = 'per-channel'\ngroup_size = 64"), {"per-channel", "64"});
  check_error(quantization("name = 'w8a8'\ngroup_size = 64"), {"64", "w8a8"});
  check_error(quantization("bits = 4\nquant_method = { activation = 'per-token' }"), {"4-bit", "per-token"});
  check_error(quantization("name = 'w4a17'"), {"w4a17", "did you mean 'w4a16'?"});
}

TEST_CASE("config/ errors name file, line, key and the nearest key") {
  check_error("[dataset]\n\nnum_sample = 3\n",
              {".toml:3:", "dataset.num_sample", "did you mean 'dataset.num_samples'?"});
  check_error("[datset]\npath = 'x'\n", {".toml:1:", "[datset]", "did you mean 'dataset'?"});
  check_error("[dataset]\nnum_samples = 'many'\n", {".toml:2:", "dataset.num_samples", "'many'", "integer"});
  check_error("[dataset]\nnum_samples = 0\n", {"found '0'", "from 1 to"});
  check_error("[dataset]\nshuffle = 1\n", {"true or false"});
  check_error("[model]\npath = 3\n", {"model.path", "found '3'"});
  check_error("[run]\ndtype = 'float23'\n", {"float23", "did you mean 'float32'?"});
  check_error("[run]\nseed = -1\n", {"run.seed"});
  check_error("[output]\nmax_shard_size = '5 parsecs'\n", {"5 parsecs", "5GB"});
  check_error("[compression]\nplugin = [1, 2]\n", {"list of texts"});
  check_error("[compression.awq]\ngrid = [1]\n", {"compression.awq.grid"});
  check_error("model = 'x'\n", {"[model]"});
  check_error("[model\n", {".toml:1:", "no valid TOML"});
  check_error("[model]\npath = '\xff'\n", {"no valid TOML"});
  RunConfig config;
  CHECK(read_config_file("/no/such/file.toml", config).code() == Code::kNotFound);
  CHECK(read_config_file("/", config).code() == Code::kNotFound);
}

TEST_CASE("config/ a file with an error changes nothing") {
  RunConfig config;
  CHECK_FALSE(read("[model]\npath = 'x'\n[dataset]\nnum_samples = 0\n", config).ok());
  CHECK(config.model.empty());
}

TEST_CASE("config/ --set reaches every key, lists, and plugin options by their short name") {
  RunConfig config;
  const auto set = [&](const std::string& text) {
    const Status status = set_config_value(text, config);
    CHECK_MESSAGE(status.ok(), status.message());
  };
  set("compression.plugin=awq,gptq");
  set("compression.quantization.name=w4a16");
  set("compression.quantization.group_size=64");
  set("awq.grid=40");
  set("compression.gptq.damp=0.1");
  set("dataset.shuffle=true");
  set("dataset.prompt=what = this?");
  CHECK(config.plugins == std::vector<std::string>{"awq", "gptq"});
  CHECK(config.scheme == "w4a16");
  CHECK(config.group_size == 64);
  CHECK(config.plugin_options.at("awq").at("grid") == "40");
  CHECK(config.plugin_options.at("gptq").at("damp") == "0.1");
  CHECK(config.shuffle);
  CHECK(config.calib_prompt == "what = this?");
  CHECK(check_plugin_options(config).ok());
}

TEST_CASE("config/ a wrong --set is an error that shows it") {
  RunConfig config;
  const auto message = [&](const std::string& text) {
    const Status status = set_config_value(text, config);
    CHECK(status.code() == Code::kInvalidArgument);
    return status.message();
  };
  CHECK(message("nonsense").find("expected key=value") != std::string::npos);
  CHECK(message("=x").find("expected key=value") != std::string::npos);
  CHECK(message("batch_size=4").find("did you mean 'dataset.batch_size'?") != std::string::npos);
  CHECK(message("dataset.batch_sizes=4").find("did you mean 'dataset.batch_size'?") != std::string::npos);
  CHECK(message("dataset.batch_size=4x").find("found '4x'") != std::string::npos);
  CHECK(message("run.all_experts=maybe").find("true or false") != std::string::npos);
}

TEST_CASE("config/ a scheme named later replaces the earlier words about it") {
  RunConfig config = read_ok(quantization("bits = 4\ngroup_size = 64\n"));
  REQUIRE(set_config_key("compression.quantization.name", {"fp8_dynamic"}, config).ok());
  CHECK(config.scheme == "fp8_dynamic");
  CHECK(config.group_size == 0);
}

TEST_CASE("config/ options of a plugin outside the chain are an error") {
  RunConfig config = read_ok("[compression]\nplugin = 'awq'\n[compression.gptq]\ndamp = 0.1\n");
  const Status status = check_plugin_options(config);
  CHECK(status.code() == Code::kInvalidArgument);
  CHECK(status.message().find("[compression.gptq]") != std::string::npos);
  config = read_ok("[compression]\nplugin = 'awq'\n[compression.quantisation]\nbits = 4\n");
  CHECK(check_plugin_options(config).message().find("did you mean 'quantization'?") != std::string::npos);
  config = read_ok("[compression]\nplugin = '/x/libslim_algorithm_mine.so'\n[compression.mine]\nx = 1\n");
  CHECK(check_plugin_options(config).ok());
}

TEST_CASE("config/ rules are read from tables, and from one text each") {
  RunConfig config = read_ok(R"(
[[rule]]
match = "re:.*down_proj"
scheme = "w8a16"
algorithm = "awq,gptq"
group_size = 64
[[rule]]
match = ["*.q_proj", "*.k_proj"]
scheme = "none"
)");
  REQUIRE(config.rules.size() == 2);
  CHECK(config.rules[0].match == std::vector<std::string>{"re:.*down_proj"});
  CHECK(config.rules[0].scheme == "w8a16");
  CHECK(config.rules[0].plugins == std::vector<std::string>{"awq", "gptq"});
  CHECK(config.rules[0].group_size == 64);
  CHECK(config.rules[1].match.size() == 2);
  REQUIRE(set_config_key("compression.rule", {"re:.*[=:]x=w8a16:awq,gptq", "a.*=none"}, config).ok());
  REQUIRE(config.rules.size() == 2);
  CHECK(config.rules[0].match == std::vector<std::string>{"re:.*[=:]x"});
  CHECK(config.rules[0].scheme == "w8a16");
  CHECK(config.rules[0].plugins == std::vector<std::string>{"awq", "gptq"});
  CHECK(config.rules[1].text() == "a.*=none");
}

TEST_CASE("config/ a rule that says nothing, or what no rule has, is an error with its line") {
  check_error("[[rule]]\nscheme = 'w8a16'\n", {".toml:1", "match"});
  check_error("[[rule]]\nmatch = 'a'\n", {".toml:1", "says nothing"});
  check_error("[[rule]]\nmatch = 'a'\nschem = 'w8a16'\n", {".toml:3", "did you mean 'scheme'?"});
  check_error("[[rule]]\nmatch = 'a'\ngroup_size = 'x'\n", {".toml:3", "integer"});
  check_error("[rule]\nmatch = 'a'\n", {"[[rule]]"});
  RunConfig config;
  for (const char* text : {"", "w8a16", "=w8a16", "a="})
    CHECK_MESSAGE(!set_config_key("compression.rule", {text}, config).ok(), text);
}

TEST_CASE("config/ each of several outputs says only what differs") {
  const RunConfig config = read_ok(R"(
[compression]
plugin = "awq"
[compression.quantization]
name = "w4a16"
group_size = 64
[[output]]
path = "a"
[[output]]
path = "b"
scheme = "fp8_dynamic"
algorithm = ["rtn"]
kv_cache = "fp8"
[output.rtn]
range = "mse"
[[output]]
path = "c"
group_size = 32
[[output.rule]]
match = "x"
scheme = "none"
)");
  const auto all = output_configs(config);
  REQUIRE_MESSAGE(all.ok(), all.status().message());
  REQUIRE(all->size() == 3);
  CHECK((*all)[0].output == "a");
  CHECK((*all)[0].scheme == "w4a16");
  CHECK((*all)[0].group_size == 64);
  CHECK((*all)[1].scheme == "fp8_dynamic");
  CHECK((*all)[1].group_size == 0);
  CHECK((*all)[1].plugins == std::vector<std::string>{"rtn"});
  CHECK((*all)[1].kv_cache == "fp8");
  CHECK((*all)[1].plugin_options.at("rtn").at("range") == "mse");
  CHECK((*all)[2].group_size == 32);
  CHECK((*all)[2].kv_cache == "none");
  CHECK((*all)[2].rules.size() == 1);
  CHECK(check_plugin_options(config).ok());
}

TEST_CASE("config/ outputs alone name algorithm and path for the run") {
  const RunConfig config =
      read_ok("[[output]]\npath = 'a'\nalgorithm = 'rtn'\n[[output]]\npath = 'b'\nplugin = 'awq,gptq'\n");
  CHECK(config.plugins == std::vector<std::string>{"rtn"});
  CHECK(config.output == "a");
  const auto all = output_configs(config);
  REQUIRE(all.ok());
  CHECK((*all)[1].plugins == std::vector<std::string>{"awq", "gptq"});
}

TEST_CASE("config/ outputs without a path, with the same one, or beside --output are errors") {
  const auto message = [](const std::string& text, const char* flag) {
    RunConfig config = read_ok(text);
    if (flag) REQUIRE(set_config_key("output.path", {flag}, config).ok());
    return output_configs(config).status().message();
  };
  CHECK(message("[[output]]\npath = 'a'\n[[output]]\nscheme = 'w4a16'\n", nullptr).find("without path") !=
        std::string::npos);
  CHECK(message("[[output]]\npath = 'a'\n[[output]]\npath = 'a'\n", nullptr).find("path a") !=
        std::string::npos);
  CHECK(message("[[output]]\npath = 'a'\n", "b").find("exclude each other") != std::string::npos);
  check_error("[[output]]\npath = 'a'\nsheme = 'w4a16'\n", {".toml:3", "sheme"});
  check_error("[[output]]\npath = []\n", {".toml:2", "output.path"});
  check_error("[[output]]\npath = 'a'\nmax_shard_size = 'large'\n", {".toml:3", "output.max_shard_size"});
}

TEST_CASE("config/ the table has no name twice, and the listing shows every key") {
  std::vector<std::string> names = config_key_names();
  std::sort(names.begin(), names.end());
  CHECK(std::adjacent_find(names.begin(), names.end()) == names.end());
  const std::string help = config_keys_help();
  for (const ConfigKey& key : config_keys()) {
    CHECK_FALSE(key.doc.empty());
    CHECK(help.find(key.doc) != std::string::npos);
  }
  CHECK(help.find("num_samples = <integer 1..1000000>  (default 128)") != std::string::npos);
}

TEST_CASE("config/ sizes are bytes with decimal or binary units") {
  CHECK(*parse_bytes("1000000") == 1'000'000);
  CHECK(*parse_bytes("5GB") == 5'000'000'000);
  CHECK(*parse_bytes("512MiB") == 536'870'912);
  CHECK(*parse_bytes("1.5gib") == 1'610'612'736);
  CHECK(*parse_bytes("0") == 0);
  for (const char* text : {"", "GB", "-1", "5XB", "5 GB", "1e400", "inf", "9999999999999GB", "0x10"}) {
    CHECK_MESSAGE(!parse_bytes(text).ok(), text);
  }
}

TEST_CASE("config/ YAML says the same as TOML, with AngelSlim's keys") {
  RunConfig config;
  const Status status = read(R"(global:
  save_path: ./output
model:
  name: QwenVL
  model_path: Qwen/Qwen2.5-VL-7B-Instruct
  trust_remote_code: true
  torch_dtype: auto
compression:
  name: PTQ
  quantization:
    name: int4_awq
    bits: 4
    low_memory: true
    quant_method: {weight: "per-group", group_size: 128, zero_point: true, mse_range: false}
    ignore_layers:
      - "lm_head"
      - model.language_model.embed_tokens
  rule:
    - match: ["*.down_proj"]
      scheme: w8a16
dataset:
  data_path: ChartQA
  max_seq_length: 4096   # tokens
  num_samples:
)",
                             config, ".yaml");
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(config.output == "./output");
  CHECK(config.adapter == "qwen2_5_vl");
  CHECK(config.plugins == std::vector<std::string>{"awq"});
  CHECK(config.scheme == "w4a16_asym");
  CHECK(config.group_size == 128);
  CHECK(config.ignore_layers == std::vector<std::string>{"lm_head", "model.language_model.embed_tokens"});
  CHECK(config.rules.size() == 1);
  CHECK(config.max_seq_length == 4096);
  CHECK(config.num_samples == 128);  // an empty value leaves the key out
}

TEST_CASE("config/ what is wrong in YAML is named by its line") {
  const auto message = [](const std::string& text) {
    RunConfig config;
    const Status status = read(text, config, ".yml");
    CHECK(status.code() == Code::kInvalidArgument);
    return status.message();
  };
  CHECK(message("run:\n  seeed: 1\n").find(".yml:2: unknown key 'run.seeed'; did you mean 'run.seed'?") !=
        std::string::npos);
  CHECK(message("run:\n  seed: [a\n").find("no valid YAML") != std::string::npos);
  CHECK(message("run:\n  seed: \"1\"\n").find(".yml:2: run.seed") != std::string::npos);
  CHECK(message("- a\n").find("expected sections") != std::string::npos);
  CHECK(message("run:\n  seed: 1\n  seed: 2\n").find("stands twice") != std::string::npos);
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int k = 0; k < 10; ++k) bomb += (k ? ", *a" : "*a") + std::to_string(i - 1);
    bomb += "]\n";
  }
  CHECK(message(bomb).find("too many values") != std::string::npos);
}
