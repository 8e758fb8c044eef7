#include "run/fingerprint.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <set>

#include "checkpoint/checksums.h"
#include "checkpoint/file.h"
#include "checkpoint/strict_json.h"
#include "config/keys.h"
#include "slim/ops.hpp"
#include "slim/version.hpp"
#include "util/hash.h"

namespace slim {
namespace {

namespace fs = std::filesystem;

Result<uint64_t> hash_file_at(const std::string& path) {
  SLIM_ASSIGN(const File file, File::open_read(path));
  SLIM_ASSIGN(const int64_t size, file.size());
  return hash_file(file, 0, size);
}

/// Name, size and time of the last change of a file, or of every file below a folder.
std::string hash_stamps(const fs::path& path) {
  std::error_code error;
  std::set<std::string> stamps;
  const auto add = [&](const fs::path& file) {
    const auto size = fs::file_size(file, error);
    const auto time = fs::last_write_time(file, error).time_since_epoch().count();
    stamps.insert(file.lexically_relative(path.parent_path()).string() + " " + std::to_string(size) + " " +
                  std::to_string(time));
  };
  if (!fs::is_directory(path, error))
    add(path);
  else
    for (const auto& entry : fs::recursive_directory_iterator(path, error)) {
      if (entry.is_regular_file(error)) add(entry.path());
    }
  uint64_t hash = kHashStart;
  for (const std::string& stamp : stamps) hash = hash_text(stamp + "\n", hash);
  return hash_digits(hash);
}

/// The library that this code is in.
std::string core_path() {
  Dl_info info{};
  return ::dladdr(reinterpret_cast<const void*>(&core_path), &info) != 0 ? info.dli_fname : "";
}

/// Where a run puts things, and what cannot change its result.
bool changes_result(const std::string& key) {
  static const std::set<std::string> kOthers = {"run.resume",  "run.stop_after_blocks", "run.plugin_dirs",
                                                "run.threads", "output.overwrite",      "output.path",
                                                "model.path",  "dataset.path"};
  return !kOthers.contains(key);
}

Status add_plugin(slim_kind kind, const std::string& name, PluginRegistry& registry,
                  Fingerprint& fingerprint) {
  SLIM_ASSIGN(const PluginInfo info, registry.find(kind, name));
  SLIM_ASSIGN(const uint64_t hash, hash_file_at(info.path));
  fingerprint["plugin " + info.id + " (" + std::to_string(info.kind) + ")"] =
      info.version + " " + hash_digits(hash);
  return {};
}

Status add_plugins(const OutputPlan& output, PluginRegistry& registry, Fingerprint& fingerprint) {
  for (const std::string& name : output.config.plugins)
    SLIM_TRY(add_plugin(SLIM_ALGORITHM, name, registry, fingerprint));
  for (const LayerRule& rule : output.config.rules) {
    for (const std::string& name : rule.plugins)
      SLIM_TRY(add_plugin(SLIM_ALGORITHM, name, registry, fingerprint));
  }
  return add_plugin(SLIM_FORMAT, output.recipe.format_id, registry, fingerprint);
}

}  // namespace

std::string weight_files_stamp(const Model& model) {
  uint64_t files = kHashStart;
  const Checkpoint& checkpoint = model.weights->checkpoint();
  for (const std::string& name : checkpoint.weight_files())
    files = hash_text(hash_stamps(fs::path(checkpoint.folder()) / name), files);
  return hash_digits(files);
}

Result<Fingerprint> run_fingerprint(const RunConfig& config, const std::string& backend,
                                    const std::vector<const OutputPlan*>& outputs, const Model& model,
                                    PluginRegistry& registry) {
  SLIM_ASSIGN(Fingerprint fingerprint, model_fingerprint(model));
  for (const auto& [key, value] : config_values(config)) {
    if (changes_result(key)) fingerprint[key] = value;
  }
  fingerprint[kWeightFiles] = weight_files_stamp(model);
  if (!config.calib.empty()) fingerprint["the calibration data"] = hash_stamps(config.calib);
  if (!config.statistics.empty()) fingerprint["the statistics"] = hash_stamps(config.statistics);
  for (const OutputPlan* output : outputs) SLIM_TRY(add_plugins(*output, registry, fingerprint));
  SLIM_TRY(add_plugin(SLIM_ADAPTER, model.adapter_id, registry, fingerprint));
  SLIM_TRY(add_plugin(SLIM_BACKEND, backend, registry, fingerprint));
  SLIM_ASSIGN(const uint64_t core, hash_file_at(core_path()));
  fingerprint["slim"] = SLIM_VERSION " " + hash_digits(core);
  fingerprint["CPU threads"] = std::to_string(at::get_num_threads());
  fingerprint["the processor"] = at::get_cpu_capability();
  fingerprint["how products are computed"] =
      ops::product_text(at::kBFloat16, at::kCPU) + ", " + ops::product_text(at::kHalf, at::kCPU);
  return fingerprint;
}

Result<Fingerprint> model_fingerprint(const Model& model) {
  constexpr int64_t kSample =
      4096;  // of every tensor: tells a fine-tuned model from its base without reading it all
  const Checkpoint& checkpoint = model.weights->checkpoint();
  uint64_t shapes = kHashStart, contents = kHashStart;
  std::array<std::byte, kSample> sample{};
  for (const auto& [name, spec] : checkpoint.tensors()) {
    shapes =
        hash_text(name + " " + std::string(dtype_name(spec.dtype)) + shape_string(spec.shape) + "\n", shapes);
    const auto size = static_cast<size_t>(std::min(kSample, byte_size(spec).value_or(0)));
    SLIM_TRY(checkpoint.read_bytes(name, 0, std::span(sample).first(size)));
    contents = hash_bytes(std::span(sample).first(size), contents);
  }
  return Fingerprint{{"the model's config.json", hash_digits(hash_text(checkpoint.config_json()))},
                     {"the model's tensor names and shapes", hash_digits(shapes)},
                     {"the model's weights", hash_digits(contents)},
                     {"the adapter", model.adapter_id}};
}

std::string difference(const Fingerprint& found, const Fingerprint& expected) {
  std::string text;
  for (const auto& [name, value] : expected) {
    const auto other = found.find(name);
    if (other != found.end() && other->second == value) continue;
    text += (text.empty() ? "" : "; ") + name + ": " + (other == found.end() ? "not said" : other->second) +
            ", this run has " + value;
  }
  return text;
}

std::string fingerprint_json(const Fingerprint& fingerprint) { return nlohmann::json(fingerprint).dump(); }

Result<Fingerprint> parse_fingerprint(std::string_view json) {
  SLIM_ASSIGN(const auto parsed, parse_strict_json(json));
  Fingerprint fingerprint;
  if (!parsed.is_object()) return Status(Code::kCorrupt, "the fingerprint is no JSON object");
  for (const auto& [name, value] : parsed.items()) {
    if (!value.is_string()) return Status(Code::kCorrupt, "the fingerprint's '" + name + "' is no text");
    fingerprint[name] = value.get<std::string>();
  }
  return fingerprint;
}

}  // namespace slim
