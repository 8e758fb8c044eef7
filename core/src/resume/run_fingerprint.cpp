#include "resume/run_fingerprint.h"

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
#include "config/keys.h"
#include "slim/ops.hpp"
#include "slim/version.hpp"
#include "util/file_stamps.h"
#include "util/hash.h"
#include "util/strict_json.h"

namespace slim {
namespace {

namespace fs = std::filesystem;

/// A data file by its content, whatever its times say; a folder, and a file that would take seconds to read, by names, sizes and times.
Result<std::string> data_digest(const std::string& path) {
  constexpr uintmax_t kMost = uintmax_t{1} << 30;
  std::error_code error;
  if (!fs::is_regular_file(path, error) || fs::file_size(path, error) > kMost) return file_stamps(path);
  SLIM_ASSIGN(const uint64_t hash, hash_file(path));
  return hash_digits(hash);
}

/// The library that this code is in.
std::string core_path() {
  Dl_info info{};
  return ::dladdr(reinterpret_cast<const void*>(&core_path), &info) != 0 ? info.dli_fname : "";
}

/// Where a run puts things, and what cannot change its result.
bool changes_result(const std::string& key) {
  static const std::set<std::string> kOthers = {
      "run.resume",       "run.stop_after_blocks", "run.plugin_dirs", "run.threads",
      "output.overwrite", "output.path",           "model.path",      "dataset.path",
      "output.engine",    "output.tensor_parallel"};
  return !kOthers.contains(key);
}

Status add_plugin(slim_kind kind, const std::string& name, PluginRegistry& registry,
                  Fingerprint& fingerprint) {
  SLIM_ASSIGN(const PluginInfo info, registry.find(kind, name));
  SLIM_ASSIGN(const uint64_t hash, hash_file(info.path));
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

Result<Fingerprint> run_fingerprint(const RunConfig& config, const std::string& backend,
                                    const std::vector<const OutputPlan*>& outputs, const Model& model,
                                    PluginRegistry& registry) {
  SLIM_ASSIGN(Fingerprint fingerprint, model_fingerprint(model));
  for (const auto& [key, value] : config_values(config)) {
    if (changes_result(key)) fingerprint[key] = value;
  }
  fingerprint[kWeightFiles] = weight_files_stamp(model);
  if (!config.calib.empty()) {
    SLIM_ASSIGN(fingerprint["the calibration data"], data_digest(config.calib));
  }
  if (!config.statistics.empty()) {
    SLIM_ASSIGN(const uint64_t hash, hash_file(config.statistics));
    fingerprint["the statistics"] = hash_digits(hash);
  }
  for (const OutputPlan* output : outputs) SLIM_TRY(add_plugins(*output, registry, fingerprint));
  SLIM_TRY(add_plugin(SLIM_ADAPTER, model.adapter_id, registry, fingerprint));
  SLIM_TRY(add_plugin(SLIM_BACKEND, backend, registry, fingerprint));
  SLIM_ASSIGN(const uint64_t core, hash_file(core_path()));
  fingerprint["slim"] = SLIM_VERSION " " + hash_digits(core);
  fingerprint["CPU threads"] = std::to_string(at::get_num_threads());
  fingerprint["the processor"] = at::get_cpu_capability();
  fingerprint["how products are computed"] =
      ops::product_text(at::kBFloat16, at::kCPU) + ", " + ops::product_text(at::kHalf, at::kCPU);
  return fingerprint;
}

}  // namespace slim
