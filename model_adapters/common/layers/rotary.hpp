#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/files/json_config.hpp"

/// Rotary position embeddings (RoFormer, arXiv:2104.09864), their long-context scalings, and the multimodal
/// kind, where every token has a temporal, a height and a width position (M-RoPE, arXiv:2409.12191).
namespace slim::model {

struct RopeConfig {
  std::string type = "default";  ///< "default", "linear", "llama3", "yarn", "dynamic"
  double theta = 10000;
  double factor = 1;
  double alpha = 0;  ///< "dynamic" with a fixed base: theta * alpha^(d / (d - 2)) (HunYuan)
  double low_frequency_factor = 1, high_frequency_factor = 4;
  double beta_fast = 32, beta_slow = 1, attention_factor = 0, mscale = 0, mscale_all_dim = 0;
  bool truncate = true;
  int64_t max_positions = 0, original_max_positions = 0;
  /// M-RoPE: how many frequencies follow the temporal, height and width position; empty: plain rotary.
  std::vector<int64_t> sections;
  bool interleaved = false;  ///< sections are dealt out T H W T H W ... instead of one after the other
};

/// Reads rope_parameters, or the older rope_scaling with rope_theta beside it. Errors (an unknown type, a key
/// missing) are kept in the JsonConfig.
RopeConfig read_rope(const JsonConfig&, double default_theta);

/// Rotation tables for positions. Immutable.
class Rotary {
 public:
  Rotary() = default;
  Rotary(const RopeConfig&, int64_t head_dim);
  /// cos and sin [tokens, head_dim]; angles in fp32, then `dtype`. positions int64: [tokens], or with
  /// sections [3, tokens]. Throws ExecError where "dynamic" scaling would have to change its base (beyond
  /// max_position_embeddings).
  std::pair<at::Tensor, at::Tensor> tables(const at::Tensor& positions, at::ScalarType dtype,
                                           at::Device device) const;

 private:
  RopeConfig config_;
  at::Tensor inverse_frequencies_;  ///< [head_dim / 2] fp32
  double magnitude_ = 1;            ///< cos and sin are multiplied by it (yarn)
};

/// x [tokens, heads, head_dim] rotated by cos and sin [tokens, head_dim], halves paired; computed in the
/// wider of the two dtypes and rounded to x's.
at::Tensor apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// ---- vision towers: two axes ------------------------------------------------------------------------------

/// Rows and columns [2, patches] of the patches of images of t*h*w patches (grid_thw int64 [images, 3]), in
/// the order in which towers that merge `merge` x `merge` patches see them: merge blocks row by row, inside
/// them row by row.
at::Tensor patch_positions(const at::Tensor& grid_thw, int64_t merge);
/// cos and sin [patches, head_dim] fp32: the first quarter of the angles turns with the row, the second with
/// the column.
std::pair<at::Tensor, at::Tensor> axial_tables(const at::Tensor& patch_positions, int64_t head_dim,
                                               double theta);

// ---- multimodal positions of a sequence -------------------------------------------------------------------

/// Consecutive image or frame tokens of a sequence: the grid after merging.
struct VisionSpan {
  int64_t begin = 0;  ///< index of the first token
  int64_t frames = 1, height = 0, width = 0;
  int64_t frame_step = 1;  ///< distance of the temporal positions of neighbouring frames
  int64_t tokens() const { return frames * height * width; }
};
/// Positions of the `tokens` of one sequence, and the position of the token that would follow. Text counts up
/// on all three axes; a span starts where the text ended, and the text goes on after max(height, width)
/// positions.
struct MultimodalPositions {
  at::Tensor positions;  ///< int64 [3, tokens]
  int64_t next = 0;      ///< one more than the largest position
};
MultimodalPositions multimodal_positions(int64_t tokens, std::span<const VisionSpan> spans);

}  // namespace slim::model
