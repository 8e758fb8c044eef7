#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>

#include "slim/dtype.hpp"
#include "slim/status.hpp"

namespace slim {

/// Converts the numbers of a tensor to another floating type, or gives the tensor itself where it has that type or is not floating.
/// kNumeric names the tensor and a finite number that the type cannot hold.
SLIM_API Result<at::Tensor> cast_checked(const std::string& name, const at::Tensor& tensor, Dtype dtype);

/// Reads the dtype that a config.json names for the model ("dtype", or in older files "torch_dtype", also in text_config); nullopt where it
/// names none of float32, bfloat16 and float16.
SLIM_API std::optional<at::ScalarType> declared_dtype(std::string_view config_json);

/// "bfloat16", as config.json and --output-dtype have it; empty for a type that they do not have.
SLIM_API std::string_view dtype_key(at::ScalarType dtype);
/// The other way; nullopt for another text.
SLIM_API std::optional<at::ScalarType> dtype_of_key(std::string_view key);

}  // namespace slim
