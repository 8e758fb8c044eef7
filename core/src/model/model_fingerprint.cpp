#include "model/model_fingerprint.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "checkpoint/checksums.h"
#include "checkpoint/file.h"
#include "util/file_stamps.h"
#include "util/hash.h"

namespace slim {

namespace fs = std::filesystem;

namespace {

/// True for files by which documents become samples.
bool makes_samples(std::string_view name) {
  for (const char* start :
       {"tokenizer", "chat_template", "vocab", "merges", "added_tokens", "special_tokens"})
    if (name.starts_with(start)) return true;
  return name.find("preprocessor_config") != std::string_view::npos || name.ends_with(".tiktoken") ||
         name.ends_with(".jinja");
}

}  // namespace

std::string weight_files_stamp(const Model& model) {
  uint64_t files = kHashStart;
  const Checkpoint& checkpoint = model.weights->checkpoint();
  for (const std::string& name : checkpoint.weight_files())
    files = hash_text(file_stamps(fs::path(checkpoint.folder()) / name), files);
  return hash_digits(files);
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
  Fingerprint fingerprint{{"the model's config.json", hash_digits(hash_text(checkpoint.config_json()))},
                          {"the model's tensor names and shapes", hash_digits(shapes)},
                          {"the model's weights", hash_digits(contents)},
                          {"the adapter", model.adapter_id}};
  // Tokenizer, chat template, preprocessor: by content, each under its name.
  for (const std::string& name : checkpoint.side_files()) {
    if (!makes_samples(name)) continue;
    SLIM_ASSIGN(const uint64_t hash, hash_file((fs::path(checkpoint.folder()) / name).string()));
    fingerprint["the model's " + name] = hash_digits(hash);
  }
  return fingerprint;
}

Result<uint64_t> block_checksum(const Model& model, const BlockPlan& block) {
  const Checkpoint& checkpoint = model.weights->checkpoint();
  std::vector<std::string> names = model.weights->stored_tensors(block);
  if (block.index == 0) {
    std::ranges::copy_if(model.plan.globals, std::back_inserter(names),
                         [&](const std::string& name) { return checkpoint.tensors().contains(name); });
  }
  uint64_t all = kHashStart;
  for (const std::string& name : names) {
    SLIM_ASSIGN(const uint64_t one, tensor_checksum(checkpoint, name));
    all = hash_text(name + " " + hash_digits(one) + "\n", all);
  }
  return all;
}

}  // namespace slim
