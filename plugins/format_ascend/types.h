#pragma once
#include <string>
#include <string_view>

#include "slim/dtype.hpp"
#include "slim/scheme.hpp"

namespace slim::ascend {

/// The weight types of Ascend engines that slim writes, by their priority: a mixed checkpoint is named by its last one.
enum class Type : uint8_t { kW4A16, kW8A16, kW8A8Dynamic, kW8A8, kW8A8S };

/// "W8A8_DYNAMIC"
std::string_view type_name(Type);
/// "w8a8_dynamic", as in file names and config.json.
std::string lower_name(Type);
/// The type that holds a scheme. kUnsupported says which there are, and names formats for other schemes.
Result<Type> type_of(const Scheme&);
/// True for types whose activations have a static scale: input_scale, input_offset, deq_scale, quant_bias.
constexpr bool is_static(Type type) { return type >= Type::kW8A8; }

/// msmodelslim's first generation ("V0") stores scales in the model's dtype, those of W8A8S and W4A16 in fp32. Here
/// those of a W8A8 model in fp16 are fp32 too: input_scale * weight_scale would be a subnormal of fp16.
c10::ScalarType scale_dtype(Type, c10::ScalarType model_dtype);

}  // namespace slim::ascend
