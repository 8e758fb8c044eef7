#pragma once
#include <functional>
#include <vector>

#include "output_error.h"
#include "slim/algorithm.hpp"
#include "slim/quant.hpp"

namespace slim::awq {

enum class WeightTerm : uint8_t { kBoth, kOn, kOff };

struct SearchOptions {
  int grid = 20;
  int refine = 24;       ///< further losses evaluated around the best grid point
  int64_t rows = 512;    ///< of each layer, for ranking
  bool by_group = true;  ///< exponents of their own for every group of channels
  WeightTerm weight_term = WeightTerm::kBoth;
  bool replay = false;  ///< the loss is the region's output error instead of the layers'
  quant::RangeOptions range;
};

/// A scale s = x_mean^activation / (w_mean^weight + 1e-4), normalised; both exponents 0: no scaling.
struct Exponents {
  double activation = 0, weight = 0;
  bool identity() const { return activation == 0 && weight == 0; }
};

struct Found {
  Exponents exponents;  ///< of the whole edge; groups may have their own
  at::Tensor scale;     ///< [features / repeat] fp32
  bool identity = true;
  bool by_group = false;
  double loss = 0, identity_loss = 0;  ///< of the whole error
};

/// Searches the scale of one edge that minimises the error of its consumers' outputs after rounding. Never worse than no scaling
/// under its own loss.
///
/// Ranking uses the same evenly chosen rows of every layer for all candidates, since the squared error is a sum over rows, and where groups
/// of channels share no scale of rounding it looks at each group alone; the winner and the identity are then compared by the whole error, on
/// more rows (all, of a layer with up to kCheckedRows). Grid and formulas: AWQ (Lin et al. 2023) and llm-compressor 0.14, which
/// use one exponent for both terms; the refinement moves the two apart.
///
/// What divides by s (a norm, or the rows of v_proj or up_proj) is no part of the loss: a norm is not quantized, and a row divided
/// by a number keeps its relative rounding error, because scales of rows and groups divide along.
class ScaleSearch {
 public:
  /// `layers`: quantized consumers of the edge. kNotFound when no statistic saw a token.
  static Result<ScaleSearch> make(BlockContext&, const ScaleEdge&, const std::vector<LayerId>& layers,
                                  const SearchOptions&);
  Result<Found> run();

 private:
  struct Consumer {
    LayerId id = 0;
    const QuantArgs* args = nullptr;
    OutputError error;
    at::Tensor sample;  // rows of the weight, fp32
    at::Tensor blocks;  // of E[x xᵀ], where groups are ranked alone
    int64_t out = 0;
    double share = 1;  // of the edge's tokens that reach this layer
  };
  ScaleSearch(BlockContext& context, const ScaleEdge& edge, const SearchOptions& options)
      : context_(context), edge_(edge), options_(options) {}

  Status read_activations();
  Status read_layers(const std::vector<LayerId>&);
  at::Tensor shared_by_heads(const at::Tensor& per_feature) const;
  at::Tensor per_feature(const at::Tensor& shared) const;
  at::Tensor scale(const Exponents&) const;
  std::vector<Exponents> grid() const;

  Result<at::Tensor> rounded(const at::Tensor& weight, const QuantArgs&, const OutputError&,
                             const at::Tensor& s) const;
  Result<at::Tensor> errors_of_rows(const Consumer&, const at::Tensor& weight,
                                    const at::Tensor& scales) const;
  Result<at::Tensor> sampled_losses(const at::Tensor& scales) const;
  Result<double> full_loss(const at::Tensor& s) const;
  Result<double> replayed_loss(const at::Tensor& s) const;
  Result<double> final_loss(const at::Tensor& shared) const;
  ops::RangeSearch range_search(const Consumer&) const;
  Result<at::Tensor> group_losses(const at::Tensor& scales);
  Result<std::vector<double>> ranking_losses(const std::vector<Exponents>&);
  Status refine(Exponents& best, double& best_loss);
  int64_t shared_group() const;
  bool ranks_by_group() const { return shared_group() > 0 && !options_.replay; }
  at::Tensor scale_by_group() const;

  BlockContext& context_;
  const ScaleEdge& edge_;
  SearchOptions options_;
  std::vector<Consumer> consumers_;
  at::Tensor x_mean_, w_mean_;  // [features / repeat]
  std::vector<at::Tensor> tried_,
      tried_losses_;  // where groups are ranked alone: scales [features], losses fp64 [groups]
};

}  // namespace slim::awq
