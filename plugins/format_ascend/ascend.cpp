#include "description.h"
#define SLIM_PLUGIN_CLAIMS "w8a8s"
#include "slim/plugin.hpp"
#include "storage.h"

namespace slim::ascend {
namespace {

/// Checkpoints for Ascend NPUs (MindIE, vLLM-Ascend) as msmodelslim's Calibrator writes them ("ascendV1").
class Ascend final : public Format {
 public:
  c10::ScalarType scale_dtype(const Scheme& scheme, c10::ScalarType model_dtype) const override {
    const Result<Type> type = type_of(scheme);
    return type.ok() ? ascend::scale_dtype(*type, model_dtype) : model_dtype;
  }
  Result<std::vector<TensorSpec>> layout(const Layer& layer, const Scheme& scheme,
                                         c10::ScalarType model_dtype) const override {
    SLIM_ASSIGN(const Storage storage, storage_of(layer, scheme, model_dtype));
    return specs_of(layer.name, storage);
  }
  Result<TensorMap> encode(const Layer& layer, const Scheme& scheme, const Solved& solved,
                           c10::ScalarType model_dtype) const override {
    return ascend::encode(layer, scheme, solved, model_dtype);
  }
  /// The types are in the description; config.json only names the model's.
  Result<std::string> quantization_config(const OutputModel&) const override { return std::string(); }
  Result<std::map<std::string, std::string>> config_entries(const OutputModel& output) const override {
    SLIM_ASSIGN(const Type type, model_type(output));
    const std::string value = "\"" + lower_name(type) + "\"";
    return std::map<std::string, std::string>{
        {"quantize", value}, {"text_config.quantize", value}, {"vision_config.quantize", value}};
  }
  std::string weights_stem(const Scheme& scheme) const override {
    const Result<Type> type = type_of(scheme);
    return type.ok() ? "quant_model_weight_" + lower_name(*type) : "model";
  }
  Result<std::map<std::string, std::string>> side_files(const OutputModel& output) const override {
    SLIM_ASSIGN(const std::string text, write_description(output));
    return std::map<std::string, std::string>{{"quant_model_description.json", text}};
  }
  bool recognises(std::string_view description, const std::vector<std::string>&) const override {
    return Description::recognises(description);
  }
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&,
                                                 std::string_view description) const override;
  Result<Solved> decode(const StoredLayer& layer, const TensorReader& reader) const override {
    return ascend::decode(layer, reader);
  }
};

Result<std::vector<StoredLayer>> Ascend::stored_layers(const TensorReader& reader,
                                                       std::string_view text) const {
  SLIM_ASSIGN(const Description description, Description::parse(text));
  SLIM_TRY(description.check(reader.tensors()));
  std::vector<StoredLayer> layers;
  for (const auto& [name, type] : description.types()) {
    if (type == "FLOAT" || !name.ends_with(".weight")) continue;
    SLIM_ASSIGN(StoredLayer layer, stored_layer(name.substr(0, name.size() - 7), type, reader));
    layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace
}  // namespace slim::ascend
SLIM_FORMAT_PLUGIN("ascend", slim::ascend::Ascend,
                   "Ascend checkpoints for MindIE and vLLM-Ascend (quant_model_description.json)")
