#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "plugin/registry.h"
#include "slim/format.hpp"
#include "slim/plan.hpp"

namespace slim {

/// What an engine does to a layer's input before multiplying.
struct ActivationQuantization {
  QuantArgs args;
  at::Tensor scale, zero;  ///< static quantization only
};

/// The tensors of one block, in the dtype of the checkpoint, changed in place as the run goes on. Indexed by LayerId.
struct BlockWeights {
  std::vector<at::Tensor> weight, bias;  ///< [out, in] and [out]; bias undefined without one
  std::vector<std::optional<ActivationQuantization>> activation;
  TensorMap params;
};
/// Its tensors on the device; those that are there already are not copied.
SLIM_API BlockWeights moved(BlockWeights, at::Device);

/// The weights of a checkpoint as its model sees them: float tensors under their logical names, whether they are stored in
/// float or quantized by a format that slim has a plugin for. Thread-safe after open().
class SLIM_API WeightSource {
 public:
  static Result<std::unique_ptr<WeightSource>> open(const std::string& folder, PluginRegistry& registry);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  /// Names, shapes and float dtypes as an unquantized checkpoint would have them: what adapters plan from.
  const std::map<std::string, TensorSpec>& logical() const { return logical_; }
  /// The layer's stored form; null if it is stored in float.
  const StoredLayer* stored(const std::string& layer_name) const;
  bool quantized() const { return !stored_.empty(); }
  /// The id of the format in which it is quantized; empty if it is not.
  const std::string& format_id() const { return format_id_; }
  /// The method of a "quantization_config" that was passed over, since every tensor is in float: left by what quantized the model before it
  /// was merged or decoded. Empty: there is none.
  const std::string& stale_quantization() const { return stale_quantization_; }
  /// Where what the checkpoint says of its quantization and its tensors say different things to engines: Format::contradictions() of its format.
  Result<std::vector<std::string>> contradictions(const ModelPlan&) const;
  /// True for side files that say how a quantized checkpoint is quantized: they do not hold for what is made of it.
  bool describes_quantization(std::string_view file) const;
  /// The dtype of most of the model's elements, in which decoded weights are handed out too.
  at::ScalarType dtype() const { return dtype_; }

  /// A tensor by its logical name.
  Result<at::Tensor> tensor(std::string_view name) const;
  /// True if tensor() makes this one of what is stored quantized.
  bool decodes(std::string_view name) const;
  Result<at::Tensor> rows(std::string_view name, const at::Tensor& ids) const;
  /// The layer's matrix [out, in], contiguous: slices of packed tensors cut out, quantized ones decoded.
  Result<at::Tensor> matrix(const Layer&) const;
  /// All of a block. May run in another thread than the forward pass.
  Result<BlockWeights> load(const BlockPlan&) const;
  /// The names of the tensors in the files that load() reads, each once, sorted: of what is stored quantized, its scales too.
  std::vector<std::string> stored_tensors(const BlockPlan&) const;
  /// Asks the system to read the block's tensors from disk.
  void prefetch(const BlockPlan&) const;

 private:
  WeightSource() = default;
  Status find_stored_layers(PluginRegistry&);
  const StoredLayer* layer_of(std::string_view weight) const;
  Status pass_over(const std::string& quantization_config);
  Result<at::Tensor> decoded(const StoredLayer&, std::optional<ActivationQuantization>*) const;

  std::shared_ptr<const Checkpoint> checkpoint_;
  Owned<Format> format_;
  std::string format_id_, stale_quantization_;
  std::string quantization_;  ///< what the checkpoint says of it, as JSON
  std::map<std::string, StoredLayer, std::less<>> stored_;
  std::map<std::string, TensorSpec> logical_;
  at::ScalarType dtype_ = at::kFloat;
};

/// The text of config.json's key, or empty if it has none.
SLIM_API Result<std::string> config_value(const Checkpoint&, const char* key);
/// The adapter of a checkpoint: the one named, or the one that serves its model_type.
SLIM_API Result<std::string> adapter_name(const Checkpoint&, const std::string& wanted, PluginRegistry&);

}  // namespace slim
