#include "common/layers/attention.hpp"

#include <ATen/ATen.h>

#include "slim/ops.hpp"

namespace slim::model {
namespace {

/// One or more sequences of equal length: query [n, tokens, heads, d], key and value [n, all tokens,
/// kv_heads, d].
at::Tensor attend_batch(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double scale,
                        bool causal) {
  const at::ScalarType products = ops::product_dtype(query.scalar_type(), query.device());
  const auto heads_first = [&](const at::Tensor& x) { return x.to(products).transpose(1, 2); };
  const auto q = heads_first(query), k = heads_first(key), v = heads_first(value);
  const int64_t rows = q.size(2), columns = k.size(2);
  const bool triangle = causal && rows > 1 && rows == columns;
  std::optional<at::Tensor> mask;
  if (causal && rows > 1 && rows < columns) {
    mask = at::ones({rows, columns}, q.options().dtype(at::kBool)).tril(columns - rows);
  }
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, triangle, scale,
                                          /*enable_gqa=*/q.size(1) != k.size(1))
      .transpose(1, 2)
      .reshape({query.size(0) * rows, -1})
      .to(query.scalar_type());
}

}  // namespace

at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  std::span<const int64_t> lengths, double scale, bool causal, CacheSlot slot) {
  const int64_t sequences = static_cast<int64_t>(lengths.size());
  if (query.size(0) == 0) return query.flatten(1);
  const bool equal = std::all_of(lengths.begin(), lengths.end(), [&](int64_t n) { return n == lengths[0]; });
  if (equal && !slot.cache) {
    const auto stack = [&](const at::Tensor& x) {
      return x.reshape({sequences, lengths[0], x.size(1), x.size(2)});
    };
    return attend_batch(stack(query), stack(key), stack(value), scale, causal);
  }
  std::vector<at::Tensor> outputs;
  int64_t begin = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, begin, lengths[i]); };
    auto keys = part(key), values = part(value);
    if (slot.cache) std::tie(keys, values) = slot.cache->extend(slot.block, i, keys, values);
    outputs.push_back(
        attend_batch(part(query).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), scale, causal));
    begin += lengths[i];
  }
  return at::cat(outputs);
}

std::vector<int64_t> sequence_lengths(const Carry& carry, const char* key) {
  const auto lengths = carry.at(key).to(at::kCPU).contiguous();
  return {lengths.data_ptr<int64_t>(), lengths.data_ptr<int64_t>() + lengths.numel()};
}

at::Tensor index_tensor(std::span<const int64_t> values) {
  auto tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.data_ptr<int64_t>());
  return tensor;
}

}  // namespace slim::model
