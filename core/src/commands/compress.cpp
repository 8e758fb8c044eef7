#include "commands/compress.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/writer.h"
#include "compress/cann_tool.h"
#include "compress/layout.h"
#include "compress/rank_file.h"
#include "compress/tensor_split.h"
#include "compress/weight_codec.h"
#include "model/model.h"
#include "util/name_match.h"
#include "util/strict_json.h"

namespace slim {
namespace {

using namespace compressed;

std::string ratio_text(int64_t before, int64_t after) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f",
                before > 0 ? static_cast<double>(after) / static_cast<double>(before) : 0.0);
  return text;
}

/// Reads a W8A8S checkpoint once, tensor by tensor, and writes all ranks' files along the way.
class Compression {
 public:
  Compression(const CompressConfig& config, PluginRegistry& registry, Progress& progress)
      : config_(config), registry_(registry), progress_(progress) {}

  Result<Report> run() {
    const c10::NoGradGuard no_grad;
    SLIM_TRY(choose_codec());
    SLIM_TRY(open());
    SLIM_TRY(choose_layers());
    SLIM_TRY(create_output());
    progress_.begin("compressing", static_cast<int64_t>(input().tensors().size()));
    for (const auto& [name, spec] : input().tensors()) {
      const Status written = write_tensor(name);
      if (progress_.cancelled())
        return Status(Code::kCancelled, "interrupted at " + name + "; nothing was written");
      SLIM_TRY(written);
      progress_.step(name);
    }
    for (RankFile& file : files_) SLIM_TRY(file.finish());
    SLIM_TRY(writer_->finish());
    return report();
  }

 private:
  const Checkpoint& input() const { return model_.weights->checkpoint(); }

  Status choose_codec() {
    if (config_.ranks < 1)
      return {Code::kInvalidArgument, "--tp is missing: the number of devices that share the model"};
    const char* variable = std::getenv("SLIM_CANN_COMPRESS");
    tool_ = !config_.cann_tool.empty() ? config_.cann_tool : variable ? variable : "";
    if (config_.codec != "" && config_.codec != "slim" && config_.codec != "cann") {
      return {Code::kInvalidArgument, "--codec " + config_.codec + ": expected slim or cann"};
    }
    if (config_.codec == "slim") tool_.clear();
    if (config_.codec == "cann" && tool_.empty()) {
      return {Code::kInvalidArgument,
              "--codec cann needs CANN's compression program; pass --cann-tool or set SLIM_CANN_COMPRESS"};
    }
    std::error_code error;
    if (!tool_.empty() && !std::filesystem::is_regular_file(tool_, error)) {
      return {
          Code::kNotFound,
          tool_ + ": no such program; --cann-tool or SLIM_CANN_COMPRESS names it, --codec slim does without"};
    }
    tag_ = tool_.empty() ? kSlimTag : kCannTag;
    return {};
  }

  Status open() {
    SLIM_ASSIGN(model_, Model::open(config_.input, "", registry_));
    SLIM_ASSIGN(const HeadCounts heads, head_counts(input().config_json()));
    SLIM_ASSIGN(splits_, split_of(model_.plan, input().tensors(), heads, config_.ranks));
    SLIM_ASSIGN(types_, [&]() -> Result<Types> {
      auto types = read_types(config_.input + "/" + kDescriptionFile);
      if (types.ok() || types.status().code() != Code::kNotFound) return types;
      return Status(Code::kInvalidArgument, config_.input + ": has no " + kDescriptionFile +
                                                "; quantize with --plugin sparse --scheme w8a8s first");
    }());
    return {};
  }

  /// Layers of type W8A8S but for the disabled ones.
  Status choose_layers() {
    SLIM_ASSIGN(const auto disabled, parse_patterns(config_.disabled_layers));
    std::set<std::string> unmatched(config_.disabled_layers.begin(), config_.disabled_layers.end());
    for (const auto& [tensor, type] : types_) {
      if (type != kPlainTag || !tensor.ends_with(".weight")) continue;
      const std::string layer = tensor.substr(0, tensor.size() - 7);
      bool compressed = true;
      for (const NamePattern& pattern : disabled) {
        if (!pattern.matches(layer)) continue;
        compressed = false;
        unmatched.erase(pattern.text());
      }
      if (compressed) layers_.insert(layer);
    }
    if (!unmatched.empty()) {
      return {Code::kInvalidArgument, "--disable-layers '" + *unmatched.begin() +
                                          "' matches no layer of type W8A8S; " + kDescriptionFile +
                                          " lists them"};
    }
    if (layers_.empty()) {
      return {
          Code::kInvalidArgument,
          config_.input +
              ": has no layer of type W8A8S to compress; quantize with --plugin sparse --scheme w8a8s first"};
    }
    return {};
  }

  Split split(const std::string& tensor) const {
    const auto found = splits_.find(tensor);
    return found == splits_.end() ? Split::kCopy : found->second;
  }
  /// The layer whose compressed weight this tensor is, or null.
  const std::string* compressed_layer(const std::string& tensor) const {
    if (!tensor.ends_with(".weight")) return nullptr;
    const auto found = layers_.find(tensor.substr(0, tensor.size() - 7));
    return found == layers_.end() ? nullptr : &*found;
  }

  Status create_output() {
    WriterOptions options;
    options.folder = config_.output;
    options.overwrite = config_.overwrite;
    options.inputs = {config_.input};
    SLIM_ASSIGN(writer_, CheckpointWriter::create(options, {}));
    SLIM_ASSIGN(const std::string config, config_text(input().config_json(), kPlainTag, tag_));
    SLIM_TRY(writer_->write_file("config.json", config));
    for (const std::string& name : input().side_files()) {
      if (name != kDescriptionFile) SLIM_TRY(writer_->copy_file(name, config_.input + "/" + name));
    }
    SLIM_TRY(writer_->write_file(kPartsFile, manifest_text({tag_, config_.ranks, splits_})));
    SLIM_ASSIGN(const std::string description,
                description_text(config_.input + "/" + kDescriptionFile, rank_types(), tag_));
    for (int64_t rank = 0; rank < config_.ranks; ++rank) {
      const std::string folder = rank_folder(rank, config_.ranks) + "/";
      SLIM_TRY(writer_->write_file(folder + kDescriptionFile, description));
      SLIM_TRY(create_rank(writer_->partial_folder() + "/" + folder + rank_file(tag_)));
    }
    return {};
  }

  Types rank_types() const {
    Types types;
    for (const auto& [name, type] : types_) {
      const std::string layer = name.substr(0, name.rfind('.'));
      const bool compressed = layers_.contains(layer) && type != "FLOAT";
      types[name] = compressed ? tag_ : type;
      if (compressed) types[layer + ".index"] = types[layer + ".info"] = tag_;
    }
    return types;
  }

  Status create_rank(const std::string& path) {
    std::vector<TensorSpec> fixed, variable;
    for (const auto& [name, whole] : input().tensors()) {
      TensorSpec spec = whole;
      const Split how = split(name);
      if (how == Split::kRows) spec.shape[0] /= config_.ranks;
      if (how == Split::kColumns) spec.shape[1] /= config_.ranks;
      const std::string* layer = compressed_layer(name);
      if (!layer) {
        fixed.push_back(spec);
        continue;
      }
      const int64_t n = spec.shape[0], k = spec.shape[1];
      fixed.push_back({*layer + ".index", Dtype::kI8, {8 * tile_count(n, k)}});
      fixed.push_back({*layer + ".info", Dtype::kI64, {5}});
      variable.push_back({name, Dtype::kI8, {2 * largest_compressed(n, k)}});
    }
    SLIM_ASSIGN(RankFile file, RankFile::create(path, std::move(fixed), variable));
    files_.push_back(std::move(file));
    return {};
  }

  Status write_tensor(const std::string& name) {
    SLIM_ASSIGN(const at::Tensor whole, input().read(name));
    const std::string* layer = compressed_layer(name);
    for (int64_t rank = 0; rank < config_.ranks; ++rank) {
      const at::Tensor part = part_of(whole, split(name), rank, config_.ranks);
      RankFile& file = files_[static_cast<size_t>(rank)];
      if (layer)
        SLIM_TRY(write_compressed(*layer, part, file).in(*layer));
      else
        SLIM_TRY(file.put(name, part));
    }
    return {};
  }

  Status write_compressed(const std::string& layer, const at::Tensor& weight, RankFile& file) {
    CompressedWeight compressed;
    if (tool_.empty()) {
      compressed = compress_weight(weight);
    } else {
      SLIM_ASSIGN(compressed, cann_compress(tool_, writer_->partial_folder(), weight));
    }
    before_ += weight.numel();
    after_ += static_cast<int64_t>(compressed.weight.nbytes() + compressed.index.nbytes() +
                                   compressed.info.nbytes());
    SLIM_TRY(file.put(layer + ".weight", compressed.weight));
    SLIM_TRY(file.put(layer + ".index", compressed.index));
    return file.put(layer + ".info", compressed.info);
  }

  Report report() const {
    const nlohmann::ordered_json json = {
        {"output", config_.output},
        {"type", tag_},
        {"codec", tool_.empty() ? "slim" : "cann"},
        {"tp", config_.ranks},
        {"layers", layers_.size()},
        {"weight_bytes", before_},
        {"compressed_bytes", after_},
        {"ratio", static_cast<double>(after_) / static_cast<double>(before_)}};
    Report report;
    report.text = config_.output + ": " + tag_ + ", " + std::to_string(config_.ranks) +
                  (config_.ranks == 1 ? " rank, " : " ranks, ") + std::to_string(layers_.size()) +
                  " layers compressed; their weights " + std::to_string(before_) + " -> " +
                  std::to_string(after_) + " bytes, ratio " + ratio_text(before_, after_) + "\n";
    report.json = json_text(json);
    return report;
  }

  const CompressConfig& config_;
  PluginRegistry& registry_;
  Progress& progress_;
  Model model_;
  std::string tool_, tag_;
  Types types_;
  std::map<std::string, Split> splits_;
  std::set<std::string> layers_;  ///< that are compressed
  std::unique_ptr<CheckpointWriter> writer_;
  std::vector<RankFile> files_;
  int64_t before_ = 0, after_ = 0;
};

}  // namespace

Result<Report> compress(const CompressConfig& config, PluginRegistry& registry, Progress& progress) {
  return Compression(config, registry, progress).run();
}

}  // namespace slim
