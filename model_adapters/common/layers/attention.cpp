#include "common/layers/attention.hpp"

#include <ATen/ATen.h>

#include "slim/ops.hpp"

namespace slim::model {
namespace {

// Rows of queries at a time where a window hides most keys: the mask and the scores of one part stay small.
constexpr int64_t kWindowRows = 1024;

/// One or more sequences of equal length: query [n, tokens, heads, d], key and value [n, all tokens,
/// kv_heads, d].
at::Tensor attend_all(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double scale,
                      Sight sight) {
  const at::ScalarType products = ops::product_dtype(query.scalar_type(), query.device());
  const auto heads_first = [&](const at::Tensor& x) { return x.to(products).transpose(1, 2); };
  const auto q = heads_first(query), k = heads_first(key), v = heads_first(value);
  const int64_t rows = q.size(2), columns = k.size(2);
  const bool hidden = sight.window > 0 && columns > sight.window;
  const bool triangle = sight.causal && rows > 1 && rows == columns && !hidden;
  std::optional<at::Tensor> mask;
  if (sight.causal && !triangle && (rows > 1 || hidden)) {
    mask = at::ones({rows, columns}, q.options().dtype(at::kBool)).tril(columns - rows);
    if (hidden) mask->triu_(columns - rows - sight.window + 1);
  }
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, triangle, scale,
                                          /*enable_gqa=*/q.size(1) != k.size(1))
      .transpose(1, 2)
      .reshape({query.size(0) * rows, -1})
      .to(query.scalar_type());
}

/// The same, leaving out the keys that no query of a part sees.
at::Tensor attend_batch(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double scale,
                        Sight sight) {
  const int64_t rows = query.size(1), before = key.size(1) - rows;
  if (sight.window == 0 || key.size(1) <= sight.window) return attend_all(query, key, value, scale, sight);
  std::vector<at::Tensor> outputs;
  for (int64_t row = 0; row < rows; row += kWindowRows) {
    const int64_t count = std::min(kWindowRows, rows - row), end = before + row + count;
    const int64_t begin = std::max<int64_t>(0, before + row - sight.window + 1);
    const auto seen = [&](const at::Tensor& x) { return x.narrow(1, begin, end - begin); };
    outputs.push_back(attend_all(query.narrow(1, row, count), seen(key), seen(value), scale, sight)
                          .unflatten(0, {query.size(0), count}));
  }
  return at::cat(outputs, 1).flatten(0, 1);
}

}  // namespace

at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  std::span<const int64_t> lengths, double scale, Sight sight, CacheSlot slot) {
  const int64_t sequences = static_cast<int64_t>(lengths.size());
  if (query.size(0) == 0) return query.flatten(1);
  const bool equal = std::all_of(lengths.begin(), lengths.end(), [&](int64_t n) { return n == lengths[0]; });
  if (equal && !slot.cache) {
    const auto stack = [&](const at::Tensor& x) {
      return x.reshape({sequences, lengths[0], x.size(1), x.size(2)});
    };
    return attend_batch(stack(query), stack(key), stack(value), scale, sight);
  }
  std::vector<at::Tensor> outputs;
  int64_t begin = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, begin, lengths[i]); };
    auto keys = part(key), values = part(value);
    if (slot.cache) std::tie(keys, values) = slot.cache->extend(slot.block, i, keys, values);
    outputs.push_back(
        attend_batch(part(query).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), scale, sight));
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
