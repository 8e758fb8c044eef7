#include "compress/tensor_split.h"

#include <ATen/ATen.h>

#include <array>

namespace slim {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"copy", "rows", "columns", "first"};

bool column_parallel(Role role) {
  return role == Role::kQuery || role == Role::kKey || role == Role::kValue || role == Role::kGate ||
         role == Role::kUp;
}
bool row_parallel(Role role) { return role == Role::kAttentionOutput || role == Role::kDown; }

Status check_divides(const Layer& layer, const HeadCounts& heads, int64_t ranks) {
  const auto refuse = [&](int64_t count, const std::string& what) {
    return Status(Code::kInvalidArgument, "--tp " + std::to_string(ranks) + " does not divide the " +
                                              std::to_string(count) + " " + what + " of " + layer.name +
                                              "; choose a divisor");
  };
  const int64_t channels = column_parallel(layer.role) ? layer.out : layer.in;
  if (channels % ranks != 0) return refuse(channels, column_parallel(layer.role) ? "rows" : "columns");
  const bool key_value = layer.role == Role::kKey || layer.role == Role::kValue;
  const bool query = layer.role == Role::kQuery || layer.role == Role::kAttentionOutput;
  const int64_t count = key_value ? heads.key_value : query ? heads.query : 0;
  return count % ranks == 0 ? Status{} : refuse(count, "heads");
}

Split split_of_part(std::string_view part, bool columns, const TensorSpec& spec, const Layer& layer) {
  if (part == "weight") return columns ? Split::kRows : Split::kColumns;
  const bool per_row = spec.shape.size() == 1 && spec.shape[0] == layer.out;
  if (part == "quant_bias" || part == "bias") return columns ? Split::kRows : Split::kFirst;
  if (part == "deq_scale" && per_row && columns && layer.out > 1) return Split::kRows;
  return Split::kCopy;
}

}  // namespace

std::string_view split_name(Split split) { return kNames[static_cast<size_t>(split)]; }

std::optional<Split> split_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Split>(i);
  }
  return std::nullopt;
}

Result<std::map<std::string, Split>> split_of(const ModelPlan& plan,
                                              const std::map<std::string, TensorSpec>& tensors,
                                              const HeadCounts& heads, int64_t ranks) {
  std::map<std::string, Split> splits;
  for (const BlockPlan& block : plan.blocks) {
    if (block.stage != "language") continue;
    for (const Layer& layer : block.layers) {
      const bool columns = column_parallel(layer.role);
      if (!columns && !row_parallel(layer.role)) continue;
      if (!tensors.contains(layer.name + ".weight"))
        continue;  // a slice of a tensor that holds several layers
      SLIM_TRY(check_divides(layer, heads, ranks));
      for (const char* part : {"weight", "bias", "deq_scale", "quant_bias"}) {
        const auto found = tensors.find(layer.name + "." + part);
        if (found == tensors.end()) continue;
        const Split split = split_of_part(part, columns, found->second, layer);
        if (split != Split::kCopy) splits[found->first] = split;
      }
    }
  }
  return splits;
}

at::Tensor part_of(const at::Tensor& tensor, Split split, int64_t rank, int64_t ranks) {
  if (split == Split::kCopy || (split == Split::kFirst && rank == 0)) return tensor;
  if (split == Split::kFirst) return at::zeros_like(tensor);
  const int64_t dimension = split == Split::kRows ? 0 : 1;
  const int64_t size = tensor.size(dimension) / ranks;
  return tensor.narrow(dimension, rank * size, size).contiguous();
}

Result<at::Tensor> join_parts(const std::vector<at::Tensor>& parts, Split split) {
  if (split == Split::kRows || split == Split::kColumns) {
    const int64_t dimension = split == Split::kRows ? 0 : 1;
    for (const at::Tensor& part : parts) {
      if (part.dim() <= dimension || part.sizes() != parts.front().sizes())
        return Status(Code::kCorrupt, "the ranks' parts do not fit together");
    }
    return at::cat(parts, dimension);
  }
  for (size_t rank = 1; rank < parts.size(); ++rank) {
    const at::Tensor expected = split == Split::kCopy ? parts.front() : at::zeros_like(parts.front());
    if (!at::equal(parts[rank], expected)) {
      return Status(Code::kCorrupt, "rank " + std::to_string(rank) +
                                        (split == Split::kCopy ? " holds other values than rank 0"
                                                               : " holds values that only rank 0 may hold"));
    }
  }
  return parts.front();
}

}  // namespace slim
