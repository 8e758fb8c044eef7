#pragma once
#include "slim/algorithm.hpp"

namespace slim::sparse {

/// n:m pruning: of every m consecutive inputs of a row at most n keep a weight. Schemes "2:4", "n:m", and "n:m+WEIGHTS" ("2:4+w4a16"),
/// whose weights that stay are quantized.
struct PruneOptions {
  enum class Method : uint8_t {
    kSparseGpt,  ///< drops the weights whose loss the others can best make good, and lets them (Frantar, Alistarh 2023)
    kWanda,     ///< drops the least |w| sqrt(E[x²]) (Sun et al. 2023)
    kMagnitude  ///< drops the least |w|: needs no calibration
  };
  Method method = Method::kSparseGpt;
  double damp = 0.01;  ///< added to the diagonal of the Gram matrix, as a share of its mean

  /// Reads "prune_method" and "damp_percent".
  static PruneOptions from(const Options&);
};

/// kUnsupported for groups of scales that would cut a run of m inputs.
Status accepts_pruning(const Scheme&);
void observe_pruning(const PruneOptions&, const Layer&, const Scheme&, int64_t features, Observations&);
/// Dense without quantization. SparseGPT rounds integers in the sweep that prunes; everything else is pruned, then rounded.
/// A layer that no token reached is pruned by magnitude, and noted.
Result<Solved> solve_pruning(const PruneOptions&, LayerContext&);

}  // namespace slim::sparse
