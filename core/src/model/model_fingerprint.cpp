#include "model/model_fingerprint.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "util/file_stamps.h"
#include "util/hash.h"

namespace slim {

namespace fs = std::filesystem;

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
  return Fingerprint{{"the model's config.json", hash_digits(hash_text(checkpoint.config_json()))},
                     {"the model's tensor names and shapes", hash_digits(shapes)},
                     {"the model's weights", hash_digits(contents)},
                     {"the adapter", model.adapter_id}};
}

}  // namespace slim
