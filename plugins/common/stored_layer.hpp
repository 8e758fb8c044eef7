#pragma once
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slim/format.hpp"

/// What formats check about results before they are stored, and about tensors before they are decoded. Pure.
namespace slim::formats {

/// Shape of a weight's scales, as slim::Quantized has them.
std::vector<int64_t> scale_shape(const QuantArgs&, int64_t out, int64_t in);
/// kUnsupported if a scheme in groups does not fit the layer's width.
Status check_groups(const Layer&, const QuantArgs&);
/// The quantized weight of a result, if it is what the scheme says: shapes, codes and zero points in their range,
/// scales positive and finite in `scale_dtype`.
Result<const Quantized*> check_result(const Layer&, const Scheme&, const Solved&,
                                      c10::ScalarType scale_dtype);

/// Modules of OutputModel::ignore that are no layers of the model as it is planned: score heads, other towers. They stay in float, and loaders
/// may take them for linear layers. model.plan must be set.
std::vector<std::string> modules_beside(const OutputModel& model);

/// kCorrupt: "where: what".
Status corrupt(const std::string& where, const std::string& what);
/// Modules that have a tensor of one of these suffixes (".qweight").
std::set<std::string> modules_with(const std::map<std::string, TensorSpec>&,
                                   std::span<const std::string_view> suffixes);
/// The tensors of a module must be exactly the expected ones; `suffixes`: all that the format knows, and therefore sees
/// as surplus.
Status check_tensors(const std::string& module, const std::vector<TensorSpec>& expected,
                     const std::map<std::string, TensorSpec>&, std::span<const std::string_view> suffixes);
/// The dtype and shape of a tensor that must be there.
Result<TensorSpec> find_tensor(const std::string& module, const std::string& name,
                               const std::map<std::string, TensorSpec>&);
/// The tensors of weights in groups or channels whose scales have this dtype.
using PackedLayout = std::vector<TensorSpec> (*)(const std::string& name, int64_t out, int64_t in,
                                                 const QuantArgs&, Dtype scale);
/// The layer [out, in] of a module that has exactly the tensors of a layout, ".qweight" and ".scales" among them: in fp16, or in bf16
/// as writers have them that follow the model's dtype.
Result<StoredLayer> packed_layer(const std::string& module, int64_t out, int64_t in, const QuantArgs&,
                                 PackedLayout, const std::map<std::string, TensorSpec>&,
                                 std::span<const std::string_view> suffixes);
/// A tensor of scales: finite, none negative.
Result<at::Tensor> read_scale(const TensorReader&, const std::string& name);

/// The name under which slim knows a scheme that was read, or a description ("4 bit").
std::string scheme_name(const Scheme&);

}  // namespace slim::formats
