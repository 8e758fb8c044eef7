#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <nlohmann/json.hpp>

#include "checkpoint/writer.h"
#include "commands/compress.h"
#include "compress/layout.h"
#include "compress/rank_file.h"
#include "compress/tensor_split.h"
#include "compress/weight_codec.h"
#include "util/strict_json.h"

namespace slim {
namespace {

using namespace compressed;

/// Joins the parts of all ranks.
class Decompression {
 public:
  Decompression(std::string input, Progress& progress) : input_(std::move(input)), progress_(progress) {}

  Result<Report> run(const std::string& output, bool overwrite) {
    const c10::NoGradGuard no_grad;
    SLIM_TRY(open());
    SLIM_ASSIGN(const std::vector<TensorSpec> specs, output_specs());
    WriterOptions options;
    options.folder = output;
    options.checksums = true;
    options.stem = kPlainStem;
    options.overwrite = overwrite;
    options.inputs = {input_};
    SLIM_ASSIGN(writer_, CheckpointWriter::create(options, specs));
    progress_.begin("decompressing", static_cast<int64_t>(specs.size()));
    for (const TensorSpec& spec : specs) {
      if (progress_.cancelled())
        return Status(Code::kCancelled, "interrupted before " + spec.name + "; nothing was written");
      SLIM_ASSIGN(const at::Tensor tensor, joined(spec.name));
      SLIM_TRY(writer_->put(spec.name, tensor));
      progress_.step(spec.name);
    }
    SLIM_TRY(write_side_files());
    const int64_t bytes = writer_->total_bytes();
    SLIM_TRY(writer_->finish());
    const nlohmann::ordered_json json = {
        {"output", output}, {"type", kPlainTag}, {"tensors", specs.size()}, {"bytes", bytes}};
    Report report;
    report.text = output + ": " + kPlainTag + ", " + std::to_string(specs.size()) + " tensors, " +
                  std::to_string(bytes) + " bytes\n";
    report.json = json_text(json);
    return report;
  }

 private:
  std::string rank_path(int64_t rank, const std::string& file) const {
    return input_ + "/" + rank_folder(rank, manifest_.ranks) + "/" + file;
  }

  Status open() {
    SLIM_ASSIGN(manifest_, read_manifest(input_));
    if (manifest_.tag != kSlimTag) {
      return {Code::kUnsupported,
              input_ + ": type " + manifest_.tag +
                  " is unpacked by CANN's kernels only; keep the W8A8S checkpoint that it was made from"};
    }
    SLIM_ASSIGN(types_, read_types(rank_path(0, kDescriptionFile)));
    for (int64_t rank = 0; rank < manifest_.ranks; ++rank) {
      SLIM_ASSIGN(TensorFile file, TensorFile::open(rank_path(rank, rank_file(manifest_.tag))));
      SLIM_TRY(check_described(file, rank));
      files_.push_back(std::move(file));
    }
    return {};
  }

  Status check_described(const TensorFile& file, int64_t rank) const {
    const auto corrupt = [&](const std::string& name, const char* what) {
      return Status(Code::kCorrupt,
                    rank_path(rank, rank_file(manifest_.tag)) + ": tensor '" + name + "' is " + what);
    };
    for (const auto& [name, type] : types_) {
      if (!file.tensors().contains(name)) return corrupt(name, "described, but missing");
    }
    for (const auto& [name, tensor] : file.tensors()) {
      if (!types_.contains(name)) return corrupt(name, "not described");
    }
    return {};
  }

  /// The layer whose compressed weight, index or info this tensor is, or empty.
  std::string compressed_layer(const std::string& tensor) const {
    const size_t dot = tensor.rfind('.');
    const std::string layer = tensor.substr(0, dot);
    const std::string part = dot == std::string::npos ? "" : tensor.substr(dot + 1);
    const bool is_part = part == "weight" || part == "index" || part == "info";
    return is_part && types_.at(tensor) == kSlimTag ? layer : "";
  }

  Result<std::vector<TensorSpec>> output_specs() const {
    std::vector<TensorSpec> specs;
    for (const auto& [name, stored] : files_.front().tensors()) {
      TensorSpec spec = stored.spec;
      const std::string layer = compressed_layer(name);
      if (!layer.empty()) {
        if (!name.ends_with(".weight")) continue;
        SLIM_ASSIGN(const at::Tensor info, files_.front().read(layer + ".info"));
        if (info.scalar_type() != at::kLong || info.dim() != 1 || info.size(0) != 5)
          return Status(Code::kCorrupt, layer + ".info: expected int64 [5]");
        spec.shape = {info[3].item<int64_t>(), info[2].item<int64_t>()};
      }
      const Split split = split_of_tensor(name);
      const size_t dimension = split == Split::kColumns ? 1 : 0;
      const bool parted = split == Split::kRows || split == Split::kColumns;
      if (parted && (spec.shape.size() <= dimension || spec.shape[dimension] <= 0))
        return Status(Code::kCorrupt, name + ": cannot have been split");
      if (parted) spec.shape[dimension] *= manifest_.ranks;
      specs.push_back(std::move(spec));
    }
    return specs;
  }

  Split split_of_tensor(const std::string& name) const {
    const auto found = manifest_.splits.find(name);
    return found == manifest_.splits.end() ? Split::kCopy : found->second;
  }

  Result<at::Tensor> joined(const std::string& name) const {
    const std::string layer = compressed_layer(name);
    std::vector<at::Tensor> parts;
    for (size_t rank = 0; rank < files_.size(); ++rank) {
      const auto part = layer.empty() ? files_[rank].read(name) : decompressed(layer, files_[rank]);
      if (!part.ok()) return part.status().in(rank_folder(static_cast<int64_t>(rank), manifest_.ranks));
      parts.push_back(*part);
    }
    auto whole = join_parts(parts, split_of_tensor(name));
    return whole.ok() ? std::move(whole) : Result<at::Tensor>(whole.status().in(name));
  }

  static Result<at::Tensor> decompressed(const std::string& layer, const TensorFile& file) {
    CompressedWeight stored;
    SLIM_ASSIGN(stored.weight, file.read(layer + ".weight"));
    SLIM_ASSIGN(stored.index, file.read(layer + ".index"));
    SLIM_ASSIGN(stored.info, file.read(layer + ".info"));
    auto weight = decompress_weight(stored);
    return weight.ok() ? std::move(weight) : Result<at::Tensor>(weight.status().in(layer));
  }

  Status write_side_files() {
    Types types;
    for (const auto& [name, type] : types_) {
      const bool packed = !compressed_layer(name).empty() && !name.ends_with(".weight");
      if (!packed) types[name] = type == kSlimTag ? kPlainTag : type;
    }
    SLIM_ASSIGN(const std::string description,
                description_text(rank_path(0, kDescriptionFile), types, kPlainTag));
    SLIM_TRY(writer_->write_file(kDescriptionFile, description));
    SLIM_ASSIGN(const std::string original, read_text(input_ + "/config.json", 16'000'000));
    SLIM_ASSIGN(const std::string config, config_text(original, kSlimTag, kPlainTag));
    SLIM_TRY(writer_->write_file("config.json", config));
    SLIM_ASSIGN(const auto files, other_files(input_));
    for (const std::string& name : files) SLIM_TRY(writer_->copy_file(name, input_ + "/" + name));
    return {};
  }

  std::string input_;
  Progress& progress_;
  Manifest manifest_;
  Types types_;  ///< of rank 0; the others have the same
  std::vector<TensorFile> files_;
  std::unique_ptr<CheckpointWriter> writer_;
};

}  // namespace

Result<Report> decompress(const std::string& input, const std::string& output, bool overwrite,
                          Progress& progress) {
  return Decompression(input, progress).run(output, overwrite);
}

}  // namespace slim
