#include "common/input/multimodal_processor.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace slim;
using namespace slim::model;

namespace {

const std::string kData = "tests/data/";

std::unique_ptr<Processor> processor_of(const std::string& toy, const MultimodalPrompt& prompt) {
  auto processor = make_multimodal_processor(kData + toy, prompt);
  REQUIRE_MESSAGE(processor.ok(), processor.status().message());
  return *std::move(processor);
}

std::unique_ptr<Processor> splitting_processor() {
  MultimodalPrompt prompt;
  prompt.split_frames = true;
  return processor_of("toy-qwen3vl", prompt);
}

std::string picture(int number) {
  const std::string digits = std::to_string(number);
  return kData + "samples/eval_images/" + std::string(4 - digits.size(), '0') + digits + ".png";
}

ContentPart video_of(std::vector<std::string> files) {
  return {ContentPart::Kind::kVideo, {}, std::move(files), {}};
}
ContentPart image_of(const std::string& file) { return {ContentPart::Kind::kImage, {}, {file}, {}}; }
ContentPart text_of(const std::string& text) { return {ContentPart::Kind::kText, text, {}, {}}; }

Document chat_of(std::vector<ContentPart> parts) {
  Document document;
  document.messages.push_back({"user", std::move(parts)});
  document.origin = "calib.jsonl:7";
  return document;
}

int64_t count(const Sample& sample, int64_t token) {
  return (sample.tensors.at("input_ids") == token).sum().item<int64_t>();
}

constexpr int64_t kVideoToken = 1805;

}  // namespace

TEST_CASE("multimodal_processor/ frames in pairs follow the mean of their times, 24 frames a second") {
  const auto processor = splitting_processor();
  const auto file = picture(1);
  const auto sample =
      processor->encode(chat_of({video_of({file, file, file, file, file}), text_of("?")}), {});
  REQUIRE_MESSAGE(sample.ok(), sample.status().message());
  const auto& grid = sample->tensors.at("video_grid_thw");
  REQUIRE(grid.sizes() == at::IntArrayRef{1, 3});
  CHECK(grid[0][0].item<int64_t>() == 3);
  const int64_t tokens = grid.prod().item<int64_t>() / 4;
  CHECK(count(*sample, kVideoToken) == tokens);
  CHECK(sample->image_tokens == tokens);
  std::string expected = "<|im_start|>user\n<|vision_start|>";
  for (const char* time : {"0.0", "0.1", "0.2"}) {
    expected += "<" + std::string(time) + " seconds><|vision_start|>";
    for (int64_t i = 0; i < tokens / 3; ++i) expected += "<|video_pad|>";
    expected += "<|vision_end|>";
  }
  expected += "<|vision_end|>?<|im_end|>\n";
  const auto ids = sample->tensors.at("input_ids");
  CHECK(std::vector<int64_t>(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel()) ==
        *processor->tokenize(expected));
}

TEST_CASE(
    "multimodal_processor/ without split frames a video is one run of tokens, with the seconds of a grid") {
  MultimodalPrompt prompt;
  prompt.seconds_per_grid = true;
  const auto processor = processor_of("toy-qwen25vl", prompt);
  const auto sample = processor->encode(chat_of({video_of({picture(1), picture(1), picture(1)})}), {});
  REQUIRE_MESSAGE(sample.ok(), sample.status().message());
  const auto places = (sample->tensors.at("input_ids") == kVideoToken).nonzero().flatten();
  const int64_t tokens = sample->tensors.at("video_grid_thw").prod().item<int64_t>() / 4;
  CHECK(places.numel() == tokens);
  CHECK((places[-1] - places[0]).item<int64_t>() == tokens - 1);
  CHECK(sample->tensors.at("pixel_values_videos").size(0) == 4 * tokens);
  CHECK(sample->tensors.at("second_per_grid_ts").item<float>() == doctest::Approx(2.0 / 24));
  CHECK(sample->tensors.count("pixel_values") == 0);
}

TEST_CASE("multimodal_processor/ images and videos of one chat keep to their own tensors") {
  const auto processor = splitting_processor();
  const auto image = image_of(picture(2));
  const auto video = video_of({picture(1), picture(1)});
  const auto alone = processor->encode(chat_of({image}), {}),
             moving = processor->encode(chat_of({video}), {});
  const auto both = processor->encode(chat_of({image, video, image}), {});
  REQUIRE_MESSAGE(both.ok(), both.status().message());
  const auto& pixels = alone->tensors.at("pixel_values");
  CHECK(both->tensors.at("pixel_values").equal(at::cat({pixels, pixels})));
  CHECK(both->tensors.at("pixel_values_videos").equal(moving->tensors.at("pixel_values_videos")));
  CHECK(both->image_tokens == 2 * alone->image_tokens + moving->image_tokens);
}

TEST_CASE(
    "multimodal_processor/ a video that is too large for max_tokens gets smaller frames, none left out") {
  const auto processor = splitting_processor();
  const auto document = chat_of({video_of(std::vector<std::string>(8, picture(1))), text_of("What moves?")});
  const auto whole = processor->encode(document, {});
  REQUIRE_MESSAGE(whole.ok(), whole.status().message());
  EncodeOptions options;
  options.max_tokens = whole->text_tokens + whole->image_tokens / 2;
  const auto smaller = processor->encode(document, options);
  REQUIRE_MESSAGE(smaller.ok(), smaller.status().message());
  CHECK(smaller->downscaled);
  CHECK_FALSE(whole->downscaled);
  CHECK(smaller->image_tokens < whole->image_tokens);
  CHECK(smaller->tensors.at("input_ids").numel() <= options.max_tokens);
  CHECK(smaller->tensors.at("video_grid_thw")[0][0].item<int64_t>() == 4);
}

TEST_CASE("multimodal_processor/ videos and prompts that do not fit together name the sample") {
  const auto processor = splitting_processor();
  const auto error = [&](const Document& document) {
    return processor->encode(document, {}).status().message();
  };
  CHECK(error(chat_of({video_of({})})) == "calib.jsonl:7: a video of it has no frames");
  CHECK(error(chat_of({video_of({picture(1)})})).find("a video of 1 frames is too short") !=
        std::string::npos);
  CHECK(error(chat_of({video_of({picture(1), kData + "no.png"})})).find("no.png") != std::string::npos);
  const auto starts = [&](const Document& document, const std::string& start) {
    CHECK_MESSAGE(error(document).starts_with(start), error(document));
  };
  starts(chat_of({text_of("<|image_pad|>")}),
         "calib.jsonl:7: its prompt has 1 places for images, but it has 0 images");
  starts(chat_of({video_of({picture(1), picture(1)}), text_of("<|video_pad|>")}),
         "calib.jsonl:7: its prompt has 2 places for videos, but it has 1 videos");
}
