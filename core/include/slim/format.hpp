#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "slim/algorithm.hpp"
#include "slim/dtype.hpp"

namespace slim {

/// Reads tensors of a checkpoint. Thread-safe.
class SLIM_API TensorReader {
 public:
  virtual ~TensorReader();
  virtual const std::map<std::string, TensorSpec>& tensors() const = 0;  ///< by name; valid as long as the reader
  /// A copy of the bytes as they are stored.
  virtual Result<at::Tensor> read(std::string_view name) const = 0;
};

/// What a Format says about the whole output.
struct OutputModel {
  const ModelPlan* plan = nullptr;           ///< valid during the call
  std::map<std::string, Scheme> schemes;     ///< by layer name; every quantized layer
  std::vector<std::string> ignore;           ///< names and "re:" patterns that describe exactly the layers left in float
  std::map<std::string, TensorSpec> tensors; ///< everything that is written
  c10::ScalarType dtype = c10::ScalarType::BFloat16;  ///< of the model
  bool scattered_groups = false;             ///< written: some layer's groups are not runs of consecutive channels (group_index)
  bool kv_cache = false;                     ///< scales of an FP8 key/value cache are among the tensors
};

/// A linear layer found in a quantized checkpoint.
struct StoredLayer {
  std::string name;              ///< module name: the logical tensor is name + ".weight"
  int64_t out = 0;               ///< rows of the logical matrix
  int64_t in = 0;                ///< its columns
  Scheme scheme;                 ///< as it is stored
  std::vector<std::string> tensors;  ///< what it is stored in
};

/// How canonical results are stored. Pure: canonical in, tensors out; files, shards and index belong to the core. Const calls
/// may come from several threads.
class SLIM_API Format {
 public:
  virtual ~Format();
  /// The dtype in which scales of a model of this dtype are stored.
  virtual c10::ScalarType scale_dtype(const Scheme&, c10::ScalarType model_dtype) const = 0;
  /// The tensors that a layer becomes, with full names; kUnsupported (what, and why) if the format cannot hold the scheme or
  /// shape. Asked for every layer before any weight is read.
  virtual Result<std::vector<TensorSpec>> layout(const Layer&, const Scheme&, c10::ScalarType model_dtype) const = 0;
  /// True if Quantized::group_index can be stored. Asked before any weight is read, of layers whose algorithm scatters groups.
  virtual bool holds_scattered_groups() const { return false; }
  /// Exactly the tensors of layout().
  virtual Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&, c10::ScalarType model_dtype) const = 0;
  /// JSON value of config.json's "quantization_config"; empty: the key is left out.
  virtual Result<std::string> quantization_config(const OutputModel&) const = 0;
  /// Tensors of the scales (real = stored * scale) of an attention's FP8 key/value cache; kUnsupported if the format has none.
  virtual Result<std::vector<TensorSpec>> cache_layout(const CacheSite&, c10::ScalarType model_dtype) const;
  /// Exactly the tensors of cache_layout(); both scales [1] fp32, positive and finite.
  virtual Result<TensorMap> encode_cache(const CacheSite&, const at::Tensor& key_scale, const at::Tensor& value_scale,
                                         c10::ScalarType model_dtype) const;
  /// Further entries of config.json: JSON values by path ("quantize", "text_config.quantize").
  virtual Result<std::map<std::string, std::string>> config_entries(const OutputModel&) const { return std::map<std::string, std::string>{}; }
  /// The weights are in STEM.safetensors, or STEM-00001-of-00002.safetensors with STEM.safetensors.index.json.
  virtual std::string weights_stem(const Scheme&) const { return "model"; }
  /// Further files by name (quantize_config.json, quant_model_description.json).
  virtual Result<std::map<std::string, std::string>> side_files(const OutputModel&) const { return std::map<std::string, std::string>{}; }

  /// True if this format wrote the checkpoint ("quantization_config" as JSON, or empty; names of all files of the folder).
  virtual bool recognises(std::string_view quantization_config, const std::vector<std::string>& files) const = 0;
  /// The quantized layers of a checkpoint of this format. Missing, surplus or misshapen tensors are errors that name them.
  virtual Result<std::vector<StoredLayer>> stored_layers(const TensorReader&, std::string_view quantization_config) const = 0;
  /// Back to canonical form, every value checked for its range.
  virtual Result<Solved> decode(const StoredLayer&, const TensorReader&) const = 0;
  /// Where "quantization_config" and tensors that stored_layers() reads say different things to an engine: one line each, led by what
  /// it is about. `found.schemes`: the stored layers; `found.ignore`: the names of all others, nothing else.
  virtual Result<std::vector<std::string>> contradictions(const OutputModel& found, const TensorReader&, std::string_view quantization_config) const;
};

}  // namespace slim
