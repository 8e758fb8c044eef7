// Anchors of the interfaces: their vtables and type information live in libslim_core alone, so that exceptions and objects
// mean the same on both sides of the plugin boundary.
#include <algorithm>

#include "slim/adapter.hpp"
#include "slim/algorithm.hpp"
#include "slim/backend.hpp"
#include "slim/format.hpp"

namespace slim {
Statistic::~Statistic() = default;
Observations::~Observations() = default;
Notes::~Notes() = default;
LayerContext::~LayerContext() = default;
BlockContext::~BlockContext() = default;
Algorithm::~Algorithm() = default;
int64_t Algorithm::work_bytes(const Layer& layer, const Scheme&) const {
  constexpr int64_t kSliceBytes = int64_t{160} << 20;
  const int64_t copy = layer.out * layer.in * 4;
  return 2 * copy + copy / 4 + std::min(kSliceBytes, 3 * copy);
}
Processor::~Processor() = default;
KeyValueCache::~KeyValueCache() = default;
Exec::~Exec() = default;
ModelAdapter::~ModelAdapter() = default;
Backend::~Backend() = default;
TensorReader::~TensorReader() = default;
Format::~Format() = default;

Result<std::vector<TensorSpec>> Format::cache_layout(const CacheSite&, c10::ScalarType) const {
  return Status(
      Code::kUnsupported,
      "this format has no scales for a key/value cache; use compressed-tensors, or leave kv_cache out");
}
Result<TensorMap> Format::encode_cache(const CacheSite& site, const at::Tensor&, const at::Tensor&,
                                       c10::ScalarType type) const {
  return cache_layout(site, type).status();
}
Result<std::vector<std::string>> Format::contradictions(const OutputModel&, const TensorReader&,
                                                        std::string_view) const {
  return std::vector<std::string>{};
}
}  // namespace slim
