// Anchors of the interfaces: their vtables and type information live in libslim_core alone, so that exceptions and objects
// mean the same on both sides of the plugin boundary.
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
Processor::~Processor() = default;
KeyValueCache::~KeyValueCache() = default;
Exec::~Exec() = default;
ModelAdapter::~ModelAdapter() = default;
Backend::~Backend() = default;
TensorReader::~TensorReader() = default;
Format::~Format() = default;
}  // namespace slim
