#include "common/multimodal_processor.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "common/attention.hpp"
#include "common/chat.hpp"
#include "common/image.hpp"
#include "common/json_config.hpp"
#include "common/tokenizer.hpp"
#include "common/vision_processor.hpp"

namespace slim::model {
namespace {

/// An image of a document: its pixels, and the patches they give.
struct Picture {
  at::Tensor pixels;
  PatchedImage patched;
  int64_t tokens = 0;
};

/// The largest n so that every picture fits into `budget` tokens together when none has more than n; 0 if
/// there is none.
int64_t level_tokens(const std::vector<Picture>& pictures, int64_t budget) {
  std::vector<int64_t> sizes;
  for (const auto& picture : pictures) sizes.push_back(picture.tokens);
  std::sort(sizes.begin(), sizes.end());
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t share = budget / static_cast<int64_t>(sizes.size() - i);
    if (sizes[i] > share) return std::max<int64_t>(share, 0);
    budget -= sizes[i];
  }
  return sizes.empty() ? 0 : sizes.back();
}

class MultimodalProcessor final : public Processor {
 public:
  MultimodalProcessor(Tokenizer tokenizer, ChatTemplate chat, PatchOptions options, int64_t image_token,
                      std::vector<int64_t> stops)
      : tokenizer_(std::move(tokenizer)),
        chat_(std::move(chat)),
        options_(options),
        image_token_(image_token),
        stops_(std::move(stops)) {}

  Result<Sample> encode(const Document& document, const EncodeOptions& options) const override {
    auto sample = encode_unnamed(document, options);
    if (!sample.ok()) return sample.status().in(document.origin);
    sample->origin = document.origin;
    return sample;
  }
  Result<std::vector<int64_t>> tokenize(std::string_view text) const override {
    return tokenizer_.encode(text, /*add_special=*/false);
  }
  Result<std::string> decode(std::span<const int64_t> ids) const override { return tokenizer_.decode(ids); }
  std::vector<int64_t> stop_tokens() const override { return stops_; }

 private:
  Result<Sample> encode_unnamed(const Document& document, const EncodeOptions& options) const {
    std::string text = document.text;
    if (!document.messages.empty()) {
      SLIM_ASSIGN(text, chat_.render(document.messages, options.generation_prompt));
    }
    SLIM_ASSIGN(const auto ids, tokenizer_.encode(text));
    SLIM_ASSIGN(auto pictures, load(document));
    const int64_t placeholders = std::count(ids.begin(), ids.end(), image_token_);
    if (placeholders != static_cast<int64_t>(pictures.size())) {
      return Status(Code::kInvalidArgument, "its prompt has " + std::to_string(placeholders) +
                                                " places for images, but it has " +
                                                std::to_string(pictures.size()) + " images");
    }
    Sample sample;
    SLIM_TRY(fit(ids, options.max_tokens, pictures));
    for (const auto& picture : pictures) sample.downscaled |= picture.patched.downscaled;
    expand(ids, pictures, options.max_tokens, sample);
    return sample;
  }

  Result<std::vector<Picture>> load(const Document& document) const {
    std::vector<Picture> pictures;
    for (const auto& message : document.messages) {
      for (const auto& part : message.content) {
        if (part.kind == ContentPart::Kind::kText) continue;
        if (part.kind == ContentPart::Kind::kVideo) {
          return Status(Code::kUnsupported,
                        "it has a video, which slim does not calibrate with; give its frames as images");
        }
        if (part.bytes.empty() && part.files.size() != 1) {
          return Status(Code::kInvalidArgument, "an image of it has neither a file nor bytes");
        }
        Picture picture;
        SLIM_ASSIGN(picture.pixels,
                    part.bytes.empty() ? read_image(part.files[0]) : decode_image(part.bytes, "image"));
        SLIM_TRY(patch(picture, 0));
        pictures.push_back(std::move(picture));
      }
    }
    return pictures;
  }

  /// max_tokens 0: no limit.
  Status patch(Picture& picture, int64_t max_tokens) const {
    const int64_t area = options_.merge_size * options_.merge_size;
    PatchOptions options = options_;
    options.max_patches = max_tokens * area;
    SLIM_ASSIGN(picture.patched, patch_image(picture.pixels, options));
    picture.tokens = picture.patched.patches() / area;
    return {};
  }

  /// Makes pictures smaller until everything up to the last one fits.
  Status fit(const std::vector<int64_t>& ids, int64_t max_tokens, std::vector<Picture>& pictures) const {
    if (max_tokens <= 0 || pictures.empty()) return {};
    const auto last = std::find(ids.rbegin(), ids.rend(), image_token_).base();
    // The token that closes the last image has to stay too.
    const int64_t prefix = std::min<int64_t>(last - ids.begin() + 1, static_cast<int64_t>(ids.size()));
    const int64_t text = prefix - static_cast<int64_t>(pictures.size());
    const int64_t level = level_tokens(pictures, max_tokens - text);
    if (level < 1) {
      return Status(Code::kInvalidArgument, "its " + std::to_string(pictures.size()) +
                                                " images do not fit into " + std::to_string(max_tokens) +
                                                " tokens beside " + std::to_string(text) +
                                                " tokens of text; allow more tokens or leave it out");
    }
    for (auto& picture : pictures) {
      if (picture.tokens > level) SLIM_TRY(patch(picture, level));
    }
    return {};
  }

  void expand(const std::vector<int64_t>& ids, const std::vector<Picture>& pictures, int64_t max_tokens,
              Sample& sample) const {
    std::vector<int64_t> expanded, grids;
    std::vector<at::Tensor> pixels;
    for (const int64_t id : ids) {
      if (id != image_token_) {
        expanded.push_back(id);
        continue;
      }
      const auto& picture = pictures[pixels.size()];
      expanded.insert(expanded.end(), picture.tokens, image_token_);
      sample.image_tokens += picture.tokens;
      pixels.push_back(picture.patched.pixel_values);
      grids.insert(grids.end(), picture.patched.grid.begin(), picture.patched.grid.end());
    }
    if (max_tokens > 0 && static_cast<int64_t>(expanded.size()) > max_tokens) expanded.resize(max_tokens);
    sample.text_tokens = static_cast<int64_t>(expanded.size()) - sample.image_tokens;
    sample.tensors["input_ids"] = index_tensor(expanded);
    if (pixels.empty()) return;
    sample.tensors["pixel_values"] = at::cat(pixels);
    sample.tensors["image_grid_thw"] = index_tensor(grids).view({-1, 3});
  }

  const Tokenizer tokenizer_;
  const ChatTemplate chat_;
  const PatchOptions options_;
  const int64_t image_token_;
  const std::vector<int64_t> stops_;
};

/// The JSON object of a file; an empty one if there is no such file.
Result<JsonConfig> read_json(const std::string& folder, const std::string& name) {
  const auto path = std::filesystem::path(folder) / name;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return JsonConfig::parse("{}", name);
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) return Status(Code::kIo, path.string() + " cannot be read");
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
  SLIM_ASSIGN(auto tokenizer, Tokenizer::from_file(folder + "/tokenizer.json"));
  SLIM_ASSIGN(auto chat, ChatTemplate::from_folder(folder));
  SLIM_ASSIGN(const auto options, read_image_options(folder));
  SLIM_ASSIGN(auto stops, read_stop_tokens(folder, tokenizer, prompt.end_of_turn));
  const int64_t image_token = tokenizer.id_of(prompt.image_token);
  if (image_token < 0) {
    return Status(Code::kCorrupt, folder + "/tokenizer.json has no token " + prompt.image_token +
                                      ", which stands for images");
  }
  return std::unique_ptr<Processor>(
      new MultimodalProcessor(std::move(tokenizer), std::move(chat), options, image_token, std::move(stops)));
}

}  // namespace slim::model
