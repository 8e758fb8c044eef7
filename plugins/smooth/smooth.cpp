#include <ATen/ATen.h>

#include <algorithm>
#include <cstdlib>

#include "batch_moments.h"
#include "slim/plugin.hpp"
#include "slim/rounding.hpp"

namespace slim::smooth {
namespace {

enum class Method : uint8_t { kSmoothQuant, kOutlierSuppression, kIterative };

/// Moves the outliers of activations into weights before 8-bit activations are rounded: x / s, W * s, with
///   SmoothQuant (Xiao et al. 2022):       s = A^alpha / Wm^(1-alpha)
///   Outlier Suppression+ (msmodelslim m2): s = sqrt(reach / Wm) where the channel reaches beyond one standard deviation, and only if
///                                         the input has a value beyond seven; its shift is not applied
///   iterative (msmodelslim m4):           s = max(A^alpha / Wm^(1-alpha), 1e-5), from the last linear pair to the norms, each with
///                                         what the ones before have left
/// where A = max|x| and Wm = max|W| per input channel, over all layers that read it with quantized activations.
class Smooth final : public Algorithm {
 public:
  Status setup(const Options&) override;
  std::string_view default_scheme() const override { return "w8a8"; }
  Status accepts(const Scheme&) const override;
  void observe(const BlockPlan&, const std::vector<const Scheme*>& schemes, Observations&) const override;
  Status transform(BlockContext&) override;
  bool solves() const override { return false; }
  Result<Solved> solve(LayerContext& context) override {
    return Status(Code::kInternal, context.layer().name + ": smooth only transforms");
  }

 private:
  bool uses(const ScaleEdge& edge) const { return linears_ || edge.fold != Fold::kLinearRows; }
  std::vector<const ScaleEdge*> ordered(const BlockPlan&) const;
  Status smooth_edge(BlockContext&, const ScaleEdge&, const std::vector<LayerId>& layers);
  Result<at::Tensor> scale(BlockContext&, const ScaleEdge&, const at::Tensor& weight_max,
                           const std::string& where) const;

  Method method_ = Method::kSmoothQuant;
  double alpha_ = 0.5;
  bool linears_ = false;
};

template <class SchemeOf>
std::vector<LayerId> quantized_readers(const ScaleEdge& edge, SchemeOf&& scheme_of) {
  std::vector<LayerId> layers;
  for (const LayerId id : edge.consumers) {
    const Scheme* scheme = scheme_of(id);
    if (scheme && scheme->weight && scheme->input) layers.push_back(id);
  }
  return layers;
}

/// Heads that read the same keys and values share a scale: the largest over them.
at::Tensor shared_by_heads(const ScaleEdge& edge, const at::Tensor& per_feature) {
  if (edge.repeat == 1) return per_feature;
  return per_feature.view({-1, edge.repeat, edge.head_dim}).amax(1).reshape({-1});
}

Status Smooth::setup(const Options& options) {
  const std::string &method = options.at("method"), &edges = options.at("edges");
  const double alpha = std::strtod(options.at("alpha").c_str(), nullptr);
  method_ = method == "m2"          ? Method::kOutlierSuppression
            : method == "iterative" ? Method::kIterative
                                    : Method::kSmoothQuant;
  if (method_ == Method::kOutlierSuppression && alpha != 0) {
    return {Code::kInvalidArgument,
            "method = m2 has no alpha (it is a square root); leave alpha out, or choose smoothquant or "
            "iterative"};
  }
  alpha_ = alpha != 0 ? alpha : method_ == Method::kIterative ? 0.9 : 0.5;
  linears_ = edges == "all" || (edges == "auto" && method_ == Method::kIterative);
  return {};
}

Status Smooth::accepts(const Scheme& scheme) const {
  if (scheme.weight && scheme.input) return {};
  return {Code::kUnsupported,
          "scheme " + scheme.name +
              " leaves activations in float, whose rounding smoothing prepares; use awq for weights alone"};
}

void Smooth::observe(const BlockPlan& plan, const std::vector<const Scheme*>& schemes,
                     Observations& observations) const {
  for (const ScaleEdge& edge : plan.edges) {
    if (!uses(edge) ||
        quantized_readers(edge, [&](LayerId id) { return schemes[static_cast<size_t>(id)]; }).empty())
      continue;
    const int64_t features = plan.ports[static_cast<size_t>(edge.port)].features;
    if (method_ == Method::kOutlierSuppression) {
      observations.want<BatchMoments>(edge.port, features);
    } else {
      observations.want<ChannelMoments>(edge.port, features);
    }
  }
  quant::observe_inputs(plan, schemes, {}, observations);  // for plain rounding, where nothing else solves
}

/// Scales into linears first: they change the rows of v_proj and up_proj, whose columns the norms' scales are found from.
std::vector<const ScaleEdge*> Smooth::ordered(const BlockPlan& plan) const {
  std::vector<const ScaleEdge*> norms, edges;
  for (const ScaleEdge& edge : plan.edges) {
    if (uses(edge)) (edge.fold == Fold::kLinearRows ? edges : norms).push_back(&edge);
  }
  std::reverse(edges.begin(), edges.end());
  edges.insert(edges.end(), norms.begin(), norms.end());
  return edges;
}

Status Smooth::transform(BlockContext& context) {
  for (const ScaleEdge* edge : ordered(context.plan())) {
    const auto layers = quantized_readers(*edge, [&](LayerId id) { return context.scheme(id); });
    if (!layers.empty()) SLIM_TRY(smooth_edge(context, *edge, layers));
  }
  return {};
}

Status Smooth::smooth_edge(BlockContext& context, const ScaleEdge& edge, const std::vector<LayerId>& layers) {
  const std::string where = context.plan().name + ": " + edge.name;
  at::Tensor weight_max;
  for (const LayerId id : layers) {
    const at::Tensor columns = context.weight(id).abs().amax(0);
    weight_max = weight_max.defined() ? at::maximum(weight_max, columns) : columns;
  }
  SLIM_ASSIGN(const at::Tensor s, scale(context, edge, shared_by_heads(edge, weight_max), where));
  if (!s.defined()) return {};
  SLIM_ASSIGN(const at::Tensor applied, context.fold(edge, s));
  context.notes().metric(where, "smooth largest scale", applied.max().item<double>());
  context.notes().metric(where, "smooth smallest scale", applied.min().item<double>());
  return {};
}

/// Undefined: nothing to do, which is noted. A channel that calibration never excited, or that no weight reads, keeps its scale.
Result<at::Tensor> Smooth::scale(BlockContext& context, const ScaleEdge& edge, const at::Tensor& weight_max,
                                 const std::string& where) const {
  const auto* moments = context.statistic<ChannelMoments>(edge.port);
  const auto* batches = context.statistic<BatchMoments>(edge.port);
  const bool outliers_only = method_ == Method::kOutlierSuppression;
  const bool seen = outliers_only ? batches && !batches->empty() : moments && moments->tokens > 0;
  if (!seen) {
    context.notes().note("not smoothed", where, "no calibration token reached its input");
    return at::Tensor();
  }
  const bool finite = outliers_only ? batches->finite() : at::isfinite(moments->abs_max()).all().item<bool>();
  if (!finite) return Status(Code::kNumeric, where + ": the activations hold NaN or Inf");
  constexpr double kOutlierSigmas = 7;
  if (outliers_only && !batches->has_outlier(kOutlierSigmas)) {
    context.notes().note("not smoothed", where, "no value lies beyond 7 standard deviations");
    return at::Tensor();
  }
  const at::Tensor size =
      shared_by_heads(edge, outliers_only ? batches->reach() : moments->abs_max().to(at::kDouble))
          .to(weight_max.device());
  const at::Tensor weights = weight_max.to(at::kDouble);
  at::Tensor s = size.pow(alpha_) / weights.pow(1 - alpha_);
  if (outliers_only) s = at::where(size > batches->spread(), s, at::ones_like(s));
  constexpr double kSmallest = 1e-5;
  const at::Tensor dead = (size == 0) | (weights == 0);
  return at::where(dead, at::ones_like(s), s.clamp_min(kSmallest)).to(at::kFloat);
}

constexpr char kSchema[] = R"json({"type":"object","properties":{
  "method":{"type":"string","enum":["smoothquant","m2","iterative"],"default":"smoothquant",
            "description":"SmoothQuant, Outlier Suppression+ (channels with outliers only), or pair after pair with a high alpha"},
  "alpha":{"type":"number","minimum":0,"maximum":1,"default":0,
           "description":"how much of an outlier moves into the weights; 0: the method's own (smoothquant 0.5, iterative 0.9)"},
  "edges":{"type":"string","enum":["auto","norms","all"],"default":"auto",
           "description":"where scales go: into norms, or also into v_proj and up_proj; auto: all for iterative, else norms"}}})json";
}  // namespace
}  // namespace slim::smooth
SLIM_ALGORITHM_PLUGIN("smooth", slim::smooth::Smooth,
                      "SmoothQuant, Outlier Suppression+ and iterative smoothing", slim::smooth::kSchema)
