#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "slim/phase.hpp"
#include "slim/plan.hpp"
#include "slim/scheme.hpp"
#include "slim/statistic.hpp"
#include "slim/status.hpp"

namespace slim {

/// A plugin's settings, already checked against its JSON schema (slim_component::options_schema): every key is known, every
/// value parses as its type and lies in its range, and defaults are filled in.
using Options = std::map<std::string, std::string, std::less<>>;

// ---- results: canonical, unpacked, free of any file format ------------------------------------------------------------

/// codes [out, in]: int8 with values in [min_code, max_code], or float8_e4m3fn.
/// scale: [1,1] tensor, [out,1] channel, [out, groups] group, [ceil(out/rows), ceil(in/columns)] block; in the dtype that will be stored.
/// zero: int8, shape of scale; undefined when symmetric.  w = (codes - zero) * scale.
/// group_index: int32 [in], the group of each input channel; undefined: i / group_size.
struct Quantized {
  QuantArgs args;          ///< the scheme's, as they were given
  at::Tensor codes;        ///< [out, in]
  at::Tensor scale;        ///< positive and finite
  at::Tensor zero;         ///< undefined when symmetric
  at::Tensor group_index;  ///< undefined: groups in their order
};
/// A weight that stays in float (pruned, or changed by a transform).
struct Dense {
  at::Tensor weight;  ///< [out, in]
};
using Compressed = std::variant<Dense, Quantized>;  ///< what a weight becomes

/// What an algorithm decided for one layer. Undefined tensors mean: unchanged, or none.
struct Solved {
  Compressed weight;        ///< [out, in]
  at::Tensor bias;         ///< [out]
  at::Tensor input_scale;  ///< [1], static activation quantization
  at::Tensor input_zero;   ///< [1] int8
  TensorMap extra;         ///< scheme-specific results that its formats know by name (deq_scale, quant_bias, smoothing scale)
};

// ---- what an algorithm sees ------------------------------------------------------------------------------------------

/// Things worth telling the user at the end: counted by `kind`, the first few named.
class SLIM_API Notes {
 public:
  virtual ~Notes();
  /// kind: "rounding instead of gptq"; where: the layer; detail: numbers. Never silent: every fallback passes here.
  virtual void note(std::string_view kind, std::string_view where, std::string_view detail) = 0;
  /// A figure per layer for report.json ("loss", "awq ratio").
  virtual void metric(std::string_view where, std::string_view key, double value) = 0;
};

using Overrides = std::map<LayerId, at::Tensor>;  ///< temporary weights for one evaluation

/// One layer, to be solved independently of all others. Valid during the call only.
class SLIM_API LayerContext {
 public:
  virtual ~LayerContext();
  virtual const Layer& layer() const = 0;    ///< its description in the plan
  virtual const Scheme& scheme() const = 0;  ///< what is to be done to it
  /// fp32 copy [out, in] after all folds: yours to destroy.
  virtual at::Tensor weight() const = 0;
  /// fp32 copy [out], or undefined.
  virtual at::Tensor bias() const = 0;
  /// The dtype in which the output format stores scales: round to it before choosing codes.
  virtual at::ScalarType scale_dtype() const = 0;
  /// Statistic of the layer's input port (an expert's is already shrunk toward its layer's); null if not collected.
  virtual const Statistic* find(std::string_view id) const = 0;
  /// find() by type; null if not collected.
  template <class S>
  const S* statistic() const {
    return static_cast<const S*>(find(S::kId));
  }
  /// Largest |w| over the layers that engines merge with this one (itself included), fp32 scalar.
  virtual double fused_abs_max() const = 0;
  /// A store shared by the layers that read the same port: one factorization for q/k/v. Emptied after the block.
  virtual TensorMap& port_cache() = 0;
  virtual uint64_t seed() const = 0;  ///< f(run seed, layer name): the same on every machine and after resume
  virtual Notes& notes() = 0;         ///< of the run; valid as long as the context
};

/// One block, for changes that keep its function (smoothing, scaling, clipping). Valid during the call only.
class SLIM_API BlockContext {
 public:
  virtual ~BlockContext();
  virtual const BlockPlan& plan() const = 0;  ///< the block's description
  /// Null: the layer stays in float.
  virtual const Scheme* scheme(LayerId) const = 0;
  virtual at::Tensor weight(LayerId) const = 0;  ///< fp32 copy [out, in]
  virtual at::Tensor norm_weight(const ScaleEdge&) const = 0;  ///< fp32 copy [features]; kNorm edges
  virtual at::ScalarType scale_dtype() const = 0;  ///< as LayerContext::scale_dtype
  /// A statistic of a port, which follows every fold; null if not collected.
  virtual const Statistic* find(PortId, std::string_view id) const = 0;
  /// find() by type; null if not collected.
  template <class S>
  const S* statistic(PortId port) const {
    return static_cast<const S*>(find(port, S::kId));
  }
  /// Mean squared error of the region's output with these weights against its float output, over all kept inputs.
  /// The region must have been asked for with Observations::keep_inputs.
  virtual Result<double> loss(RegionId, const Overrides&) = 0;
  /// Commits a scale: consumers' columns * s, producer / s, statistics rescaled. s fp32 [features / repeat], positive and
  /// finite. Returns the s that was applied: for norms it differs in the last bits, chosen so that the norm's stored
  /// weight is exact. The core proves after transform() that the block's float output has not moved.
  virtual Result<at::Tensor> fold(const ScaleEdge&, const at::Tensor& s) = 0;
  /// Commits a weight that need not keep the function (clipping, rotation): [out, in] fp32.
  virtual Status set_weight(LayerId, const at::Tensor&) = 0;
  virtual Notes& notes() = 0;  ///< of the run; valid as long as the context
};

/// A quantization algorithm: sees linears and their statistics, never a model, a file or a device. One instance serves one
/// run; calls come from one thread.
class SLIM_API Algorithm {
 public:
  virtual ~Algorithm();
  /// Cheap and pure; before any weight is read.
  virtual Status setup(const Options&) = 0;
  /// The scheme when the user names none ("w4a16_asym").
  virtual std::string_view default_scheme() const = 0;
  /// Refuses a scheme that the algorithm cannot serve.
  virtual Status accepts(const Scheme&) const { return {}; }
  /// True if solve() may return groups that are not runs of consecutive channels (Quantized::group_index).
  virtual bool scatters_groups(const Scheme&) const { return false; }
  /// Statistics to collect for this block. Asking for none in every block makes the run data-free: no forward pass.
  /// `schemes[layer]`: null for layers that stay in float.
  virtual void observe(const BlockPlan&, const std::vector<const Scheme*>& schemes, Observations&) const {}
  /// Adds an estimate of the floating-point operations that transform() and solve() take for one layer that they quantize, beyond a few for
  /// each weight: for the time that `slim plan` foretells, and for the weights of a progress bar. tokens: calibration tokens that reach it.
  virtual void count_operations(const Layer&, const Scheme&, double tokens, PhaseOperations&) const {}
  /// Estimates the bytes that transform() or solve() holds at a time for one layer, beside its weight and its statistics, for memory plans
  /// and `--max-memory`. Default: two copies of the weight in fp32, its codes, and slices of some more of at most 160 MiB.
  virtual int64_t work_bytes(const Layer&, const Scheme&) const;
  /// Function-preserving changes of the block; in the order of the chain.
  virtual Status transform(BlockContext&) { return {}; }
  /// False: transform() changes nothing. Else memory plans count the weights of a block that is observed in fp32, as folds leave them.
  virtual bool transforms() const { return true; }
  /// False: the algorithm only transforms, and the next of the chain (or plain rounding) solves.
  virtual bool solves() const { return true; }
  /// The result for one layer. The last algorithm of the chain that solves is asked.
  virtual Result<Solved> solve(LayerContext&) = 0;
};

}  // namespace slim
