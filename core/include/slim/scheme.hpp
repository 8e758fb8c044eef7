#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "slim/export.hpp"
#include "slim/status.hpp"

namespace slim {

/// What the codes are; kFloat with 8 bits is E4M3.
enum class NumberType : uint8_t { kInt, kFloat };
/// Which elements share one scale. kToken: one row of an activation, found at run time by the engine.
enum class Granularity : uint8_t { kTensor, kChannel, kGroup, kBlock, kToken };

/// How one tensor is quantized.
struct QuantArgs {
  NumberType type = NumberType::kInt;           ///< of the codes
  int bits = 4;                                 ///< 2..8
  Granularity granularity = Granularity::kGroup;  ///< what shares a scale
  int64_t group_size = 128;                     ///< kGroup: input channels that share a scale
  int64_t block_rows = 128;                     ///< kBlock
  int64_t block_columns = 128;                  ///< kBlock
  bool symmetric = true;                        ///< false: an integer zero point is stored too
  bool dynamic = false;                         ///< activations: the engine finds the scale at run time
  bool operator==(const QuantArgs&) const = default;  ///< every field

  /// Smallest signed code: -2^(b-1).
  int64_t min_code() const { return -(int64_t{1} << (bits - 1)); }
  /// Largest signed code: 2^(b-1)-1.
  int64_t max_code() const { return (int64_t{1} << (bits - 1)) - 1; }
};

/// n of every m consecutive input channels are kept.
struct Sparsity {
  int keep = 2;  ///< n
  int of = 4;    ///< m
  bool operator==(const Sparsity&) const = default;  ///< every field
};

/// What is done to one linear layer: its weight, its input, neither, or pruning.
struct Scheme {
  std::string name;  ///< "w4a16", as the user wrote it
  std::optional<QuantArgs> weight;    ///< empty: stays in float
  std::optional<QuantArgs> input;     ///< empty: stays in float
  std::optional<Sparsity> sparsity;   ///< empty: nothing is pruned
  bool operator==(const Scheme&) const = default;  ///< every field
};

/// The scheme of a name in `scheme_names()`; group_size 0 keeps the scheme's own, -1 means a whole row (per channel).
/// kInvalidArgument names the nearest known scheme.
SLIM_API Result<Scheme> scheme_from_name(std::string_view name, int64_t group_size = 0);
/// Every name that scheme_from_name() knows.
SLIM_API std::vector<std::string> scheme_names();
/// Bits that one weight costs on disk: codes, and its share of scale and zero point (16-bit scales).
SLIM_API double bits_per_weight(const QuantArgs&, int64_t in_features);

}  // namespace slim
