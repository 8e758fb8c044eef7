#pragma once

#include "slim/format.hpp"

namespace slim::formats {

/// Checkpoints of GPTQModel and AutoGPTQ: per layer `qweight` int32 [in * bits / 32, out], one little-endian stream of
/// unsigned codes down the input of every output channel; `qzeros` int32 [groups, out * bits / 32], streams along the
/// output; `scales` fp16 [groups, out]; `g_idx` int32 [in], the group of every input channel. w[o, i] = (q[i, o] -
/// z[g_idx[i], o]) * s[g_idx[i], o]. Version 1 stores z - 1, which does not hold a zero point of 0; version 2 stores z.
/// 2, 3, 4 and 8 bits.
class GptqFormat : public Format {
 public:
  explicit GptqFormat(int version) : version_(version) {}
  c10::ScalarType scale_dtype(const Scheme&, c10::ScalarType) const override { return c10::ScalarType::Half; }
  Result<std::vector<TensorSpec>> layout(const Layer&, const Scheme&,
                                         c10::ScalarType model_dtype) const override;
  bool holds_scattered_groups() const override { return true; }
  Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&,
                           c10::ScalarType model_dtype) const override;
  Result<std::string> quantization_config(const OutputModel&) const override;
  /// quantize_config.json: the same object, where older readers look for it.
  Result<std::map<std::string, std::string>> side_files(const OutputModel&) const override;
  bool recognises(std::string_view quantization_config, const std::vector<std::string>& files) const override;
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&,
                                                 std::string_view quantization_config) const override;
  Result<Solved> decode(const StoredLayer&, const TensorReader&) const override;
  Result<std::vector<std::string>> contradictions(const OutputModel& found, const TensorReader&,
                                                  std::string_view quantization_config) const override;

 private:
  int version_;
};

}  // namespace slim::formats
