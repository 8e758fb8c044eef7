#pragma once
#include <optional>
#include <string>

#include "slim/format.hpp"

namespace slim {

/// The output's config.json: the input's, its key order kept, with what the format says of the model: "quantization_config" (left
/// out where the format has none) and its further entries. An entry of a part that the model does not have ("text_config.quantize"
/// without a text_config) is left out. `dtype`: the output is written in it, and "dtype" and "torch_dtype" say so wherever they stand.
SLIM_API Result<std::string> output_config_json(const std::string& config_json, const Format&,
                                                const OutputModel&, std::optional<at::ScalarType> dtype);

}  // namespace slim
