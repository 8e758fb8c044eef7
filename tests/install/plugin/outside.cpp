#include "slim/plugin.hpp"
#include "slim/quant.hpp"

namespace {
using namespace slim;

/// The least that an algorithm needs: built outside of slim's tree against an installed slim.
class Outside final : public Algorithm {
 public:
  Status setup(const Options&) override { return {}; }
  std::string_view default_scheme() const override { return "w4a16"; }
  Result<Solved> solve(LayerContext& context) override {
    return quant::round_to_nearest(context, quant::RangeOptions{});
  }
};
}  // namespace
SLIM_ALGORITHM_PLUGIN("outside", Outside, "A plugin from another tree", "{}")
