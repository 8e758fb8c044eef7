#pragma once
#include <string>
#include <vector>

#include "slim/format.hpp"
#include "types.h"

namespace slim::ascend {

/// What a layer is, and how its tensors are typed.
struct Storage {
  Type type = Type::kW8A8S;
  int64_t out = 0, in = 0;
  int64_t groups = 1;      ///< scales of a row
  bool one_scale = false;  ///< W8A8S: one for the whole matrix
  Dtype scale = Dtype::kF32;
  Dtype deq_scale = Dtype::kF32;  ///< I64: the bits of a float32, for fp16 models
};

/// The tensors of a layer under this name.
std::vector<TensorSpec> specs_of(const std::string& name, const Storage&);
/// How a layer of a scheme is stored. kUnsupported for what the format has no place for.
Result<Storage> storage_of(const Layer&, const Scheme&, c10::ScalarType model_dtype);

/// The tensors of a solved layer.
Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&, c10::ScalarType model_dtype);
/// A module of the type that quant_model_description.json names. kCorrupt where its tensors are not of that type.
Result<StoredLayer> stored_layer(const std::string& module, const std::string& type, const TensorReader&);
Result<Solved> decode(const StoredLayer&, const TensorReader&);

}  // namespace slim::ascend
