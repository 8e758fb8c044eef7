#include "common/input/multimodal_processor.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "common/chat/chat.hpp"
#include "common/files/json_config.hpp"
#include "common/files/side_file.hpp"
#include "common/image/image.hpp"
#include "common/input/vision_processor.hpp"
#include "common/layers/attention.hpp"
#include "common/text/tokenizer.hpp"

namespace slim::model {
namespace {

constexpr double kFramesPerSecond = 24;  // of frames without any other word, as in transformers

/// An image or a video of a document: its frames, and the patches they give.
struct Visual {
  bool video = false;
  std::vector<at::Tensor> frames;
  PatchedImage patched;
  int64_t tokens = 0;
};

/// The largest n so that everything fits into `budget` tokens together when nothing has more than n; 0 if there
/// is none.
int64_t level_tokens(const std::vector<Visual>& visuals, int64_t budget) {
  std::vector<int64_t> sizes;
  for (const auto& visual : visuals) sizes.push_back(visual.tokens);
  std::sort(sizes.begin(), sizes.end());
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t share = budget / static_cast<int64_t>(sizes.size() - i);
    if (sizes[i] > share) return std::max<int64_t>(share, 0);
    budget -= sizes[i];
  }
  return sizes.empty() ? 0 : sizes.back();
}

/// What a checkpoint folder says.
struct ProcessorParts {
  Tokenizer tokenizer;
  ChatTemplate chat;
  PatchOptions image_options;
  Result<PatchOptions> video_options;  ///< told only when there is a video
  std::vector<int64_t> stops;
};

class MultimodalProcessor final : public Processor {
 public:
  MultimodalProcessor(ProcessorParts parts, MultimodalPrompt prompt)
      : parts_(std::move(parts)),
        prompt_(std::move(prompt)),
        image_token_(parts_.tokenizer.id_of(prompt_.image_token)),
        video_token_(parts_.tokenizer.id_of(prompt_.video_token)) {}

  Result<Sample> encode(const Document& document, const EncodeOptions& options) const override {
    auto prompt = read(document, options);
    if (!prompt.ok()) return fault(prompt.status()).in(document.origin);
    SLIM_TRY(fit(prompt->ids, options.max_tokens, prompt->visuals).in(document.origin));
    Sample sample;
    sample.origin = document.origin;
    for (const auto& visual : prompt->visuals) sample.downscaled |= visual.patched.downscaled;
    expand(prompt->ids, prompt->visuals, options.max_tokens, sample);
    return sample;
  }
  Result<std::vector<int64_t>> tokenize(std::string_view text) const override {
    return parts_.tokenizer.encode(text, /*add_special=*/false);
  }
  Result<std::string> decode(std::span<const int64_t> ids) const override {
    return parts_.tokenizer.decode(ids);
  }
  std::vector<int64_t> stop_tokens() const override { return parts_.stops; }

 private:
  struct Prompt {
    std::vector<int64_t> ids;  ///< one token for each image or frame
    std::vector<Visual> visuals;
  };

  /// A sample that cannot be encoded is at fault, not the command line; and kUnsupported would mean that callers may leave it
  /// out without an error.
  static Status fault(const Status& status) {
    const bool of_sample = status.code() == Code::kUnsupported || status.code() == Code::kInvalidArgument;
    return {of_sample ? Code::kCorrupt : status.code(), status.message()};
  }

  Result<Prompt> read(const Document& document, const EncodeOptions& options) const {
    Prompt prompt;
    SLIM_ASSIGN(prompt.visuals, load(document));
    std::string text = document.text;
    if (!document.messages.empty()) {
      SLIM_ASSIGN(text, parts_.chat.render(document.messages, options.generation_prompt, document.tools));
    }
    if (prompt_.split_frames) SLIM_TRY(write_times(prompt.visuals, text));
    SLIM_ASSIGN(prompt.ids, parts_.tokenizer.encode(text));
    for (const bool video : {false, true}) SLIM_TRY(check_places(prompt.ids, prompt.visuals, video));
    return prompt;
  }

  Result<std::vector<Visual>> load(const Document& document) const {
    std::vector<Visual> visuals;
    for (const auto& message : document.messages) {
      for (const auto& part : message.content) {
        if (part.kind == ContentPart::Kind::kText) continue;
        Visual visual;
        visual.video = part.kind == ContentPart::Kind::kVideo;
        if (visual.video) SLIM_TRY(parts_.video_options.status());
        if (part.bytes.empty() && (visual.video ? part.files.empty() : part.files.size() != 1)) {
          return Status(Code::kInvalidArgument, visual.video ? "a video of it has no frames"
                                                             : "an image of it has neither a file nor bytes");
        }
        SLIM_ASSIGN(visual.frames, read_frames(part));
        SLIM_TRY(patch(visual, 0));
        visuals.push_back(std::move(visual));
      }
    }
    return visuals;
  }

  static Result<std::vector<at::Tensor>> read_frames(const ContentPart& part) {
    std::vector<at::Tensor> frames;
    if (!part.bytes.empty()) {
      SLIM_ASSIGN(auto image, decode_image(part.bytes, "image"));
      frames.push_back(std::move(image));
      return frames;
    }
    for (const auto& file : part.files) {
      SLIM_ASSIGN(auto image, read_image(file));
      frames.push_back(std::move(image));
    }
    return frames;
  }

  const PatchOptions& options_of(const Visual& visual) const {
    return visual.video ? *parts_.video_options : parts_.image_options;
  }

  /// max_tokens 0: no limit.
  Status patch(Visual& visual, int64_t max_tokens) const {
    PatchOptions options = options_of(visual);
    const int64_t area = options.merge_size * options.merge_size;
    options.max_patches = max_tokens * area;
    SLIM_ASSIGN(visual.patched,
                visual.video ? patch_video(visual.frames, options) : patch_image(visual.frames[0], options));
    visual.tokens = visual.patched.patches() / area;
    return {};
  }

  /// Puts into the place of every video those of its grids, each after its time: the mean of the times of the
  /// first and the last of its frames, of which the last ones may be repeated.
  Status write_times(const std::vector<Visual>& visuals, std::string& text) const {
    size_t from = 0;
    for (const auto& visual : visuals) {
      if (!visual.video) continue;
      const int64_t step = options_of(visual).temporal_patch_size;
      const auto last = static_cast<int64_t>(visual.frames.size()) - 1;
      const auto seconds = [&](int64_t frame) {
        return static_cast<double>(std::min(frame, last)) / kFramesPerSecond;
      };
      std::string places;
      for (int64_t grid = 0; grid < visual.patched.grid[0]; ++grid) {
        char time[64];
        std::snprintf(time, sizeof time, "<%.1f seconds>",
                      (seconds(grid * step) + seconds(grid * step + step - 1)) / 2);
        places += time + prompt_.frame_start + prompt_.video_token + prompt_.frame_end;
      }
      from = text.find(prompt_.video_token, from);
      if (from == std::string::npos) {
        return {Code::kInvalidArgument, "its prompt has fewer places for videos than it has videos"};
      }
      text.replace(from, prompt_.video_token.size(), places);
      from += places.size();
    }
    return {};
  }

  /// Tokens that stand for a visual before expansion.
  int64_t places_of(const Visual& visual) const {
    return visual.video && prompt_.split_frames ? visual.patched.grid[0] : 1;
  }

  Status check_places(const std::vector<int64_t>& ids, const std::vector<Visual>& visuals, bool video) const {
    const int64_t token = video ? video_token_ : image_token_;
    const int64_t found = token < 0 ? 0 : std::count(ids.begin(), ids.end(), token);
    int64_t count = 0, places = 0;
    for (const auto& visual : visuals) {
      if (visual.video != video) continue;
      ++count;
      places += places_of(visual);
    }
    if (found == places) return {};
    const std::string what = video ? "videos" : "images";
    return {Code::kInvalidArgument,
            "its prompt has " + std::to_string(found) + " places for " + what + ", but it has " +
                std::to_string(count) + " " + what +
                (places == count ? "" : " with " + std::to_string(places) + " grids") + "; each needs one " +
                (video ? prompt_.video_token : prompt_.image_token) +
                ", which the chat template writes: leave it out of the texts"};
  }

  /// Makes images and videos smaller until everything up to the last one fits. kUnsupported: not even the smallest do.
  Status fit(const std::vector<int64_t>& ids, int64_t max_tokens, std::vector<Visual>& visuals) const {
    if (max_tokens <= 0 || visuals.empty()) return {};
    const auto is_place = [&](int64_t id) { return id == image_token_ || id == video_token_; };
    const auto last = std::find_if(ids.rbegin(), ids.rend(), is_place).base();
    // The token that closes the last one has to stay too.
    const int64_t prefix = std::min<int64_t>(last - ids.begin() + 1, static_cast<int64_t>(ids.size()));
    const int64_t text = prefix - std::count_if(ids.begin(), ids.end(), is_place);
    const int64_t level = level_tokens(visuals, max_tokens - text);
    if (level < 1) {
      return Status(Code::kUnsupported, "its " + std::to_string(visuals.size()) + " images do not fit into " +
                                            std::to_string(max_tokens) + " tokens beside " +
                                            std::to_string(text) +
                                            " tokens of text; allow more tokens (--max-seq-length)");
    }
    for (auto& visual : visuals) {
      if (visual.tokens > level) SLIM_TRY(patch(visual, level));
    }
    return {};
  }

  void expand(const std::vector<int64_t>& ids, const std::vector<Visual>& visuals, int64_t max_tokens,
              Sample& sample) const {
    std::vector<int64_t> expanded, image_places, video_places;  // tokens that each place becomes
    for (const auto& visual : visuals) {
      auto& places = visual.video ? video_places : image_places;
      places.insert(places.end(), places_of(visual), visual.tokens / places_of(visual));
    }
    auto image = image_places.begin(), video = video_places.begin();
    for (const int64_t id : ids) {
      const bool visual = id == image_token_ || id == video_token_;
      const int64_t tokens = !visual ? 1 : id == image_token_ ? *image++ : *video++;
      expanded.insert(expanded.end(), tokens, id);
      if (visual) sample.image_tokens += tokens;
    }
    if (max_tokens > 0 && static_cast<int64_t>(expanded.size()) > max_tokens) expanded.resize(max_tokens);
    sample.text_tokens = static_cast<int64_t>(expanded.size()) - sample.image_tokens;
    sample.tensors["input_ids"] = index_tensor(expanded);
    add_pixels(visuals, false, "pixel_values", "image_grid_thw", sample);
    add_pixels(visuals, true, "pixel_values_videos", "video_grid_thw", sample);
  }

  void add_pixels(const std::vector<Visual>& visuals, bool video, const char* pixel_key, const char* grid_key,
                  Sample& sample) const {
    std::vector<at::Tensor> pixels;
    std::vector<int64_t> grids;
    for (const auto& visual : visuals) {
      if (visual.video != video) continue;
      pixels.push_back(visual.patched.pixel_values);
      grids.insert(grids.end(), visual.patched.grid.begin(), visual.patched.grid.end());
    }
    if (pixels.empty()) return;
    sample.tensors[pixel_key] = at::cat(pixels);
    sample.tensors[grid_key] = index_tensor(grids).view({-1, 3});
    if (!video || !prompt_.seconds_per_grid) return;
    const double seconds = static_cast<double>(parts_.video_options->temporal_patch_size) / kFramesPerSecond;
    sample.tensors["second_per_grid_ts"] =
        at::full({static_cast<int64_t>(pixels.size())}, seconds, at::kFloat);
  }

  const ProcessorParts parts_;
  const MultimodalPrompt prompt_;
  const int64_t image_token_, video_token_;
};

/// The JSON object of a file; an empty one if there is no such file.
Result<JsonConfig> read_json(const std::string& folder, const std::string& name) {
  const auto path = std::filesystem::path(folder) / name;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return JsonConfig::parse("{}", name);
  SLIM_ASSIGN(const std::string text, read_side_file(path));
  return JsonConfig::parse(text, path.string());
}

}  // namespace

Result<std::vector<int64_t>> read_stop_tokens(const std::string& folder, const Tokenizer& tokenizer,
                                              const std::string& end_of_turn) {
  SLIM_ASSIGN(const auto of_tokenizer, read_json(folder, "tokenizer_config.json"));
  SLIM_ASSIGN(const auto generation, read_json(folder, "generation_config.json"));
  SLIM_ASSIGN(const auto config, read_json(folder, "config.json"));
  std::vector<int64_t> stops;
  const auto add = [&](int64_t id) {
    if (id >= 0 && std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
  };
  add(tokenizer.id_of(of_tokenizer.token("eos_token", end_of_turn)));
  const auto text_config = config.child("text_config");
  const auto* listed = generation.has("eos_token_id") ? &generation
                       : config.has("eos_token_id")   ? &config
                                                      : &text_config;
  for (const int64_t id : listed->integers("eos_token_id", std::vector<int64_t>{})) add(id);
  for (const auto* file : {&of_tokenizer, &generation, &config}) SLIM_TRY(file->status());
  if (!stops.empty()) return stops;
  return Status(
      Code::kCorrupt,
      folder + " names no token that ends an answer: eos_token_id is missing in generation_config.json");
}

Result<std::unique_ptr<Processor>> make_multimodal_processor(const std::string& folder,
                                                             const MultimodalPrompt& prompt) {
  SLIM_ASSIGN(auto tokenizer, Tokenizer::from_folder(folder));
  SLIM_ASSIGN(auto chat, ChatTemplate::from_folder(folder));
  SLIM_ASSIGN(const auto images, read_image_options(folder));
  auto videos = read_video_options(folder, prompt.split_frames ? PixelBudget::kVideo : PixelBudget::kFrame);
  SLIM_ASSIGN(auto stops, read_stop_tokens(folder, tokenizer, prompt.end_of_turn));
  if (tokenizer.id_of(prompt.image_token) < 0) {
    return Status(Code::kCorrupt, folder + "/tokenizer.json has no token " + prompt.image_token +
                                      ", which stands for images");
  }
  return std::unique_ptr<Processor>(new MultimodalProcessor(
      {std::move(tokenizer), std::move(chat), images, std::move(videos), std::move(stops)}, prompt));
}

}  // namespace slim::model
