#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "slim/adapter.hpp"

namespace slim::model {

/// Where one block's keys and values of earlier tokens live; without a cache the packed tokens are whole
/// sequences.
struct CacheSlot {
  KeyValueCache* cache = nullptr;
  int32_t block = 0;
};

/// Which earlier tokens a token sees.
struct Sight {
  bool causal = true;  ///< itself and those before it; false: all of its sequence
  int64_t window = 0;  ///< of those the last `window`, itself included; 0: all
};

/// softmax(scale q kᵀ) v of every sequence on its own; sequences are packed one after the other.
/// query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim] with heads a multiple of
/// kv_heads; lengths: tokens of each sequence, their sum is `tokens`. With a cache, query tokens are the last
/// ones of their sequence. Returns [tokens, heads * head_dim].
at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  std::span<const int64_t> lengths, double scale, Sight sight, CacheSlot slot = {});

/// The carry's "lengths" (or what lies at another key) as numbers.
std::vector<int64_t> sequence_lengths(const Carry&, const char* key = "lengths");
/// int64 [n] on the CPU.
at::Tensor index_tensor(std::span<const int64_t>);

}  // namespace slim::model
