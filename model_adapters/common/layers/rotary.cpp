#include "common/layers/rotary.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "slim/adapter.hpp"

namespace slim::model {
namespace {

at::Tensor default_frequencies(double theta, int64_t head_dim) {
  return 1.0 / at::pow(theta, at::arange(0, head_dim, 2, at::kFloat) / static_cast<double>(head_dim));
}

/// Llama 3.1: long waves are stretched, short ones kept, those between blended.
at::Tensor llama3_frequencies(const RopeConfig& config, const at::Tensor& plain) {
  const auto length = static_cast<double>(config.original_max_positions);
  const auto waves = 2 * std::numbers::pi / plain;
  const auto smooth = (length / waves - config.low_frequency_factor) /
                      (config.high_frequency_factor - config.low_frequency_factor);
  const auto blended = (1 - smooth) * plain / config.factor + smooth * plain;
  const auto stretched =
      at::where(waves > length / config.low_frequency_factor, plain / config.factor, plain);
  const auto between =
      (waves >= length / config.high_frequency_factor) & (waves <= length / config.low_frequency_factor);
  return at::where(between, blended, stretched);
}

/// YaRN (arXiv:2309.00071): a ramp over the frequencies between interpolated and untouched ones.
at::Tensor yarn_frequencies(const RopeConfig& config, const at::Tensor& plain, int64_t head_dim) {
  const auto dimension = [&](double rotations) {
    return static_cast<double>(head_dim) *
           std::log(static_cast<double>(config.original_max_positions) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(config.theta));
  };
  double low = dimension(config.beta_fast), high = dimension(config.beta_slow);
  if (config.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  const auto ramp = ((at::arange(head_dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  return plain / config.factor * ramp + plain * (1 - ramp);
}

double yarn_magnitude(const RopeConfig& config) {
  if (config.attention_factor > 0) return config.attention_factor;
  const auto scale = [&](double weight) {
    return config.factor <= 1 ? 1.0 : 0.1 * weight * std::log(config.factor) + 1.0;
  };
  if (config.mscale != 0 && config.mscale_all_dim != 0)
    return scale(config.mscale) / scale(config.mscale_all_dim);
  return scale(1);
}

/// angles [3, tokens, half] -> [tokens, half]: each frequency from the axis that its section names.
at::Tensor pick_axes(const at::Tensor& angles, const RopeConfig& config) {
  const int64_t half = angles.size(2);
  std::vector<int64_t> axis(half, 0);
  if (config.interleaved) {
    for (int64_t a = 1; a < 3; ++a) {
      for (int64_t i = a; i < std::min(half, 3 * config.sections[a]); i += 3) axis[i] = a;
    }
  } else {
    int64_t begin = 0;
    for (size_t section = 0; section < config.sections.size(); ++section) {
      const int64_t end = std::min(half, begin + config.sections[section]);
      std::fill(axis.begin() + begin, axis.begin() + end, static_cast<int64_t>(section % 3));
      begin = end;
    }
  }
  const auto index = at::tensor(axis, at::kLong).view({1, 1, half}).expand({1, angles.size(1), half});
  return angles.gather(0, index).squeeze(0);
}

}  // namespace

RopeConfig read_rope(const JsonConfig& config, double default_theta) {
  const auto rope = config.child(config.has("rope_scaling") ? "rope_scaling" : "rope_parameters");
  RopeConfig result;
  result.type = rope.text("rope_type", rope.text("type", "default"));
  if (result.type == "mrope") result.type = "default";
  result.theta = rope.number("rope_theta", config.number("rope_theta", default_theta));
  if (!(result.theta > 0) || !std::isfinite(result.theta)) config.fail("rope_theta", "is no positive number");
  result.max_positions = config.integer("max_position_embeddings", 0, 0);
  result.original_max_positions = rope.integer("original_max_position_embeddings", result.max_positions, 0);
  result.sections = rope.integers("mrope_section", std::vector<int64_t>{});
  result.interleaved = rope.boolean("mrope_interleaved", false);
  if (result.type == "default") return result;
  if (result.type == "dynamic") {
    result.alpha = rope.number("alpha", 0);
  } else if (result.type == "linear") {
    result.factor = rope.number("factor");
  } else if (result.type == "llama3") {
    result.factor = rope.number("factor");
    result.low_frequency_factor = rope.number("low_freq_factor");
    result.high_frequency_factor = rope.number("high_freq_factor");
  } else if (result.type == "yarn") {
    const auto ratio = static_cast<double>(result.max_positions) /
                       static_cast<double>(std::max<int64_t>(result.original_max_positions, 1));
    result.factor = rope.number("factor", ratio);
    result.attention_factor = rope.number("attention_factor", 0);
    result.mscale = rope.number("mscale", 0);
    result.mscale_all_dim = rope.number("mscale_all_dim", 0);
    result.beta_fast = rope.number("beta_fast", 32);
    result.beta_slow = rope.number("beta_slow", 1);
    result.truncate = rope.boolean("truncate", true);
  } else {
    rope.fail("rope_type", "is \"" + result.type + "\", expected default, linear, llama3, yarn or dynamic");
  }
  if ((result.type == "llama3" || result.type == "yarn") && result.original_max_positions < 1) {
    rope.fail("original_max_position_embeddings", "is missing, and so is max_position_embeddings");
  }
  return result;
}

Rotary::Rotary(const RopeConfig& config, int64_t head_dim) : config_(config) {
  const auto dim = static_cast<double>(head_dim);
  const double theta =
      config.alpha > 0 ? config.theta * std::pow(config.alpha, dim / (dim - 2)) : config.theta;
  inverse_frequencies_ = default_frequencies(theta, head_dim);
  if (config.type == "linear") inverse_frequencies_ = inverse_frequencies_ / config.factor;
  if (config.type == "llama3") inverse_frequencies_ = llama3_frequencies(config, inverse_frequencies_);
  if (config.type == "yarn") {
    inverse_frequencies_ = yarn_frequencies(config, inverse_frequencies_, head_dim);
    magnitude_ = yarn_magnitude(config);
  }
}

std::pair<at::Tensor, at::Tensor> Rotary::tables(const at::Tensor& positions, at::ScalarType dtype,
                                                 at::Device device) const {
  if (config_.type == "dynamic" && config_.alpha <= 0 && positions.numel() > 0 &&
      positions.max().item<int64_t>() >= config_.max_positions) {
    throw ExecError(
        Status(Code::kUnsupported, "a sequence is longer than max_position_embeddings (" +
                                       std::to_string(config_.max_positions) +
                                       "), where dynamic rotary scaling would change; use shorter samples"));
  }
  auto angles = positions.to(at::kCPU, at::kFloat).unsqueeze(-1) * inverse_frequencies_;
  if (!config_.sections.empty()) angles = pick_axes(angles, config_);
  const auto table = [&](const at::Tensor& half) {
    return (at::cat({half, half}, -1) * magnitude_).to(dtype).to(device);
  };
  return {table(angles.cos()), table(angles.sin())};
}

at::Tensor apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  const auto turned = at::cat({-halves[1], halves[0]}, -1);
  return (x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)).to(x.scalar_type());
}

at::Tensor patch_positions(const at::Tensor& grid_thw, int64_t merge) {
  std::vector<at::Tensor> images{at::empty({2, 0}, at::kLong)};
  const auto grid = grid_thw.to(at::kCPU).contiguous();
  for (int64_t i = 0; i < grid.size(0); ++i) {
    const int64_t *size = grid.data_ptr<int64_t>() + 3 * i, frames = size[0], height = size[1],
                  width = size[2];
    const auto in_blocks = [&](const at::Tensor& plane) {
      return plane.reshape({height / merge, merge, width / merge, merge}).transpose(1, 2).flatten();
    };
    const auto rows = at::arange(height, at::kLong).unsqueeze(1).expand({height, width});
    const auto columns = at::arange(width, at::kLong).unsqueeze(0).expand({height, width});
    images.push_back(at::stack({in_blocks(rows), in_blocks(columns)}).repeat({1, frames}));
  }
  return at::cat(images, 1);
}

std::pair<at::Tensor, at::Tensor> axial_tables(const at::Tensor& patch_positions, int64_t head_dim,
                                               double theta) {
  const auto angles = patch_positions.to(at::kFloat).unsqueeze(-1) * default_frequencies(theta, head_dim / 2);
  const auto both = at::cat({angles[0], angles[1]}, -1);
  const auto table = at::cat({both, both}, -1);
  return {table.cos(), table.sin()};
}

MultimodalPositions multimodal_positions(int64_t tokens, std::span<const VisionSpan> spans) {
  MultimodalPositions result{at::empty({3, tokens}, at::kLong), 0};
  auto out = result.positions.accessor<int64_t, 2>();
  int64_t token = 0, current = 0, largest = -1;
  const auto put = [&](int64_t t, int64_t h, int64_t w) {
    out[0][token] = t, out[1][token] = h, out[2][token] = w;
    largest = std::max({largest, t, h, w});
    ++token;
  };
  const auto text_until = [&](int64_t end) {
    while (token < end) {
      put(current, current, current);
      ++current;
    }
  };
  for (const auto& span : spans) {
    text_until(span.begin);
    for (int64_t t = 0; t < span.frames; ++t) {
      for (int64_t h = 0; h < span.height; ++h) {
        for (int64_t w = 0; w < span.width; ++w) put(current + t * span.frame_step, current + h, current + w);
      }
    }
    current += std::max(span.height, span.width);
  }
  text_until(tokens);
  result.next = largest + 1;
  return result;
}

}  // namespace slim::model
