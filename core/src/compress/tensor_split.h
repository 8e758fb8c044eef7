#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "slim/dtype.hpp"
#include "slim/export.hpp"
#include "slim/plan.hpp"
#include "slim/status.hpp"

/// Tensor parallelism on the disk: what of a checkpoint each of N ranks holds.
namespace slim {

enum class Split : uint8_t {
  kCopy,     ///< every rank holds all of it
  kRows,     ///< consecutive rows (or entries): the output channels of a column-parallel layer
  kColumns,  ///< consecutive columns: the input channels of a row-parallel layer
  kFirst     ///< rank 0 holds it, the others zeros: what is added once to the sum over the ranks
};

SLIM_API std::string_view split_name(Split);
SLIM_API std::optional<Split> split_from_name(std::string_view name);

/// Every tensor that is not copied. q, k, v, gate and up of the language model are split by rows, o and down by
/// columns; quant_bias and bias of the latter stay on rank 0, because the partial products of the ranks are added up.
/// All else (embedding, head, norms, vision tower, routers, experts packed in one tensor) is copied. kInvalidArgument
/// if `ranks` does not divide a layer, or would cut through a head of `head_counts` (0: unknown).
struct HeadCounts {
  int64_t query = 0, key_value = 0;
};
SLIM_API Result<std::map<std::string, Split>> split_of(const ModelPlan&,
                                                       const std::map<std::string, TensorSpec>& tensors,
                                                       const HeadCounts&, int64_t ranks);

SLIM_API at::Tensor part_of(const at::Tensor&, Split, int64_t rank, int64_t ranks);
/// The inverse, from the parts of all ranks. kCorrupt if parts that must agree do not.
SLIM_API Result<at::Tensor> join_parts(const std::vector<at::Tensor>& parts, Split);

}  // namespace slim
