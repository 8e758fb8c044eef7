#include "low_bit.h"
#include "prune.h"
#include "slim/plugin.hpp"

namespace slim::sparse {
namespace {

bool low_bit(const Scheme& scheme) { return scheme.name == "w8a8s"; }

/// Two ways to weights that take less room than their codes say: low-bit sparse quantization (w8a8s), and pruning (n:m).
class Sparse final : public Algorithm {
 public:
  Status setup(const Options& options) override {
    SLIM_ASSIGN(low_bit_, LowBitOptions::from(options));
    prune_ = PruneOptions::from(options);
    return {};
  }
  std::string_view default_scheme() const override { return "w8a8s"; }
  Status accepts(const Scheme& scheme) const override {
    if (scheme.sparsity) return accepts_pruning(scheme);
    if (low_bit(scheme)) return {};
    return {Code::kUnsupported,
            "sparse makes schemes w8a8s, n:m (2:4) and n:m+weights (2:4+w4a16), found " + scheme.name};
  }
  void observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
               Observations& observations) const override {
    for (const Layer& layer : plan.layers) {
      const Scheme* scheme = schemes[static_cast<size_t>(layer.id)];
      const int64_t features = plan.ports[static_cast<size_t>(layer.input)].features;
      if (scheme && scheme->sparsity) {
        observe_pruning(prune_, layer, *scheme, features, observations);
      } else if (scheme && low_bit(*scheme)) {
        observe_low_bit(low_bit_, layer, features, observations);
      }
    }
  }
  void count_operations(const Layer& layer, const Scheme& scheme, double,
                        PhaseOperations& counts) const override {
    if (!scheme.sparsity || prune_.method != PruneOptions::Method::kSparseGpt) return;
    counts.add(Phase::kSweep, static_cast<double>(layer.out) * static_cast<double>(layer.in) *
                                  static_cast<double>(layer.in));
  }
  bool transforms() const override { return false; }
  Result<Solved> solve(LayerContext& context) override {
    return context.scheme().sparsity ? solve_pruning(prune_, context) : solve_low_bit(low_bit_, context);
  }

 private:
  LowBitOptions low_bit_;
  PruneOptions prune_;
};

constexpr char kSchema[] = R"json({"type":"object","properties":{
  "prune_method":{"type":"string","enum":["sparsegpt","wanda","magnitude"],"default":"sparsegpt",
                  "description":"n:m: drop what the other weights make good best, and let them; the least |w| sqrt(E[x²]); the least |w|"},
  "damp_percent":{"type":"number","minimum":0,"maximum":1,"default":0.01,
                  "description":"n:m by sparsegpt: share of the mean of E[x²] that is added to the diagonal of the Gram matrix"},
  "fraction":{"type":"number","minimum":0.0,"maximum":0.5,"default":0.01,
              "description":"w8a8s: share of the weights that keeps more than 4 bits; msmodelslim takes 0.01 to 0.1"},
  "use_sigma":{"type":"boolean","default":false,
               "description":"w8a8s: keep weights by their deviation, |w| > sigma_factor * std(|w|), instead of by their share"},
  "sigma_factor":{"type":"number","minimum":1.0,"maximum":4.0,"default":3.0,
                  "description":"w8a8s: with use_sigma; msmodelslim takes 3 to 4 only"},
  "is_lowbit":{"type":"boolean","default":true,
               "description":"w8a8s: scales from each row's unprotected weights; false needs co_sparse"},
  "co_sparse":{"type":"boolean","default":false,
               "description":"w8a8s: one threshold for the whole matrix and searched scales; needs is_lowbit = false"},
  "act_method":{"type":"integer","minimum":1,"maximum":3,"default":1,
                "description":"w8a8s: range of activations: 1 mean of the batches' extremes, 2 histogram, 3 whichever suits the layer"},
  "open_outlier":{"type":"boolean","default":true,"description":"w8a8s: false protects no weight: plain 4-bit values"},
  "mm_tensor":{"type":"boolean","default":false,"description":"w8a8s: one scale for the whole matrix instead of one a row"},
  "saturation":{"type":"string","enum":["clip","widen"],"default":"clip",
                "description":"w8a8s: protected weights beyond 127 scales are clipped, as msmodelslim does, or widen the row's scale"}}})json";
}  // namespace
}  // namespace slim::sparse
SLIM_ALGORITHM_PLUGIN("sparse", slim::sparse::Sparse, "Low-bit sparse quantization for Ascend, and pruning",
                      slim::sparse::kSchema)
