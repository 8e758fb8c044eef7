#include "common/models/multimodal.hpp"

#include <ATen/ATen.h>

#include "common/layers/attention.hpp"
#include "common/layers/rotary.hpp"

namespace slim::model {
namespace {

/// The images or the videos of one sample.
struct Visuals {
  const char* what;  ///< "image"
  int64_t token;
  at::Tensor pixels, grid;        ///< undefined: none
  std::vector<VisionSpan> spans;  ///< in order, begin not yet set
  size_t used = 0;
};

int64_t merged_tokens(const std::vector<VisionSpan>& spans) {
  int64_t sum = 0;
  for (const auto& span : spans) sum += span.tokens();
  return sum;
}

class Collator {
 public:
  explicit Collator(const MultimodalTokens& tokens) : tokens_(tokens) {}

  Status add(const Sample& sample) {
    const auto found = sample.tensors.find("input_ids");
    if (found == sample.tensors.end() || found->second.numel() == 0) return broken("has no tokens");
    const auto ids = found->second.to(at::kCPU, at::kLong).flatten().contiguous();
    Visuals images{"image", tokens_.image_token, {}, {}, {}};
    Visuals videos{"video", tokens_.video_token, {}, {}, {}};
    SLIM_TRY(load(sample, "pixel_values", "image_grid_thw", images));
    SLIM_TRY(load(sample, "pixel_values_videos", "video_grid_thw", videos));
    SLIM_TRY(check_counts(ids, images));
    SLIM_TRY(check_counts(ids, videos));
    SLIM_TRY(place(ids, images, videos));
    ids_.push_back(ids);
    lengths_.push_back(ids.numel());
    tokens_before_ += ids.numel();
    return {};
  }

  MultimodalBatch finish() const {
    std::vector<at::Tensor> pixels = pixels_, grids = grids_, positions = positions_, ids = ids_;
    if (pixels.empty()) pixels.push_back(at::empty({0, tokens_.patch_features}, at::kFloat));
    if (grids.empty()) grids.push_back(at::empty({0, 3}, at::kLong));
    if (ids.empty())
      ids.push_back(at::empty({0}, at::kLong)), positions.push_back(at::empty({3, 0}, at::kLong));
    return {at::cat(ids),    index_tensor(lengths_), at::cat(positions, 1), index_tensor(next_),
            at::cat(pixels), at::cat(grids),         index_tensor(rows_)};
  }

 private:
  static Status broken(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

  Status load(const Sample& sample, const char* pixel_key, const char* grid_key, Visuals& visuals) const {
    const auto pixels = sample.tensors.find(pixel_key), grid = sample.tensors.find(grid_key);
    if (pixels == sample.tensors.end() && grid == sample.tensors.end()) return {};
    if (pixels == sample.tensors.end() || grid == sample.tensors.end()) {
      return broken(std::string("has one of ") + pixel_key + " and " + grid_key + " without the other");
    }
    visuals.pixels = pixels->second.to(at::kCPU);
    visuals.grid = grid->second.to(at::kCPU, at::kLong).reshape({-1, 3}).contiguous();
    std::vector<double> seconds(visuals.grid.size(0), 1.0);
    if (const auto found = sample.tensors.find("second_per_grid_ts"); found != sample.tensors.end()) {
      const auto list = found->second.to(at::kCPU, at::kDouble).flatten();
      for (int64_t i = 0; i < std::min<int64_t>(list.numel(), visuals.grid.size(0)); ++i)
        seconds[i] = list[i].item<double>();
    }
    int64_t patches = 0;
    for (int64_t i = 0; i < visuals.grid.size(0); ++i) {
      const int64_t* size = visuals.grid.data_ptr<int64_t>() + 3 * i;
      if (size[0] < 1 || size[1] < 1 || size[2] < 1 || size[1] % tokens_.merge || size[2] % tokens_.merge) {
        return broken(std::string(grid_key) + " has a grid of " + std::to_string(size[0]) + " x " +
                      std::to_string(size[1]) + " x " + std::to_string(size[2]) + ", expected multiples of " +
                      std::to_string(tokens_.merge));
      }
      patches += size[0] * size[1] * size[2];
      const bool video = visuals.token == tokens_.video_token;
      const int64_t step = video && tokens_.tokens_per_second
                               ? tokens_.tokens_per_second * static_cast<int64_t>(seconds[i])
                               : 1;
      const VisionSpan whole{0, size[0], size[1] / tokens_.merge, size[2] / tokens_.merge, step};
      if (video && tokens_.split_frames) {
        visuals.spans.insert(visuals.spans.end(), whole.frames,
                             VisionSpan{0, 1, whole.height, whole.width, 1});
      } else {
        visuals.spans.push_back(whole);
      }
    }
    if (visuals.pixels.dim() == 2 && visuals.pixels.size(0) == patches &&
        visuals.pixels.size(1) == tokens_.patch_features)
      return {};
    return broken(std::string(pixel_key) + " has shape " + shape_string(visuals.pixels.sizes().vec()) +
                  ", expected " + shape_string({patches, tokens_.patch_features}) + " from " + grid_key +
                  " and config.json");
  }

  static Status check_counts(const at::Tensor& ids, const Visuals& visuals) {
    const int64_t found = (ids == visuals.token).sum().item<int64_t>(),
                  expected = merged_tokens(visuals.spans);
    if (found == expected) return {};
    return broken("has " + std::to_string(found) + " " + visuals.what + " tokens, but its " + visuals.what +
                  "s give " + std::to_string(expected) + " features");
  }

  /// Finds the run of tokens of every span; appends rows, positions, pixels and grids.
  Status place(const at::Tensor& ids, Visuals& images, Visuals& videos) {
    const int64_t* token = ids.data_ptr<int64_t>();
    const int64_t count = ids.numel();
    std::vector<VisionSpan> spans;
    std::vector<int64_t> rows[2];
    for (int64_t i = 0; i < count;) {
      if (token[i] != images.token && token[i] != videos.token) {
        ++i;
        continue;
      }
      auto& visuals = token[i] == images.token ? images : videos;
      auto span = visuals.spans[visuals.used++];
      span.begin = i;
      const int64_t end = i + span.tokens();
      auto& run = rows[&visuals == &videos];
      for (; i < end; ++i) {
        if (i == count || token[i] != visuals.token) {
          return broken("has a run of " + std::to_string(i - span.begin) + " " + visuals.what +
                        " tokens, expected " + std::to_string(span.tokens()));
        }
        run.push_back(tokens_before_ + i);
      }
      spans.push_back(span);
    }
    for (auto* visuals : {&images, &videos}) {
      if (!visuals->pixels.defined()) continue;
      pixels_.push_back(visuals->pixels);
      grids_.push_back(visuals->grid);
    }
    for (const auto& run : rows) rows_.insert(rows_.end(), run.begin(), run.end());
    auto placed = multimodal_positions(count, spans);
    positions_.push_back(placed.positions);
    next_.push_back(placed.next);
    return {};
  }

  const MultimodalTokens& tokens_;
  std::vector<at::Tensor> ids_, positions_, pixels_, grids_;
  std::vector<int64_t> lengths_, next_, rows_;
  int64_t tokens_before_ = 0;
};

}  // namespace

Result<MultimodalBatch> collate(std::span<const Sample> samples, const MultimodalTokens& tokens) {
  Collator collator(tokens);
  for (const auto& sample : samples) {
    if (auto status = collator.add(sample); !status.ok()) return std::move(status).in(sample.origin);
  }
  return collator.finish();
}

}  // namespace slim::model
