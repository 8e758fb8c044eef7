#include "common/input/vision_processor.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

using namespace slim;
using namespace slim::model;

namespace {

at::Tensor noise(int64_t height, int64_t width) {
  at::manual_seed(height * 1000 + width);
  return at::randint(0, 256, {height, width, 3}, at::kByte);
}

/// Raw pixels in patches: no resizing, no normalization.
PatchOptions raw(int64_t patch, int64_t temporal, int64_t merge) {
  PatchOptions options;
  options.patch_size = patch;
  options.temporal_patch_size = temporal;
  options.merge_size = merge;
  options.resize = options.rescale = options.normalize = false;
  return options;
}

std::string message(const std::string& json) {
  return parse_image_options(json, "p.json").status().message();
}

}  // namespace

TEST_CASE("vision_processor/ sizes become multiples of the factor inside the bounds") {
  std::mt19937_64 random(7);
  for (int i = 0; i < 2000; ++i) {
    const ImageSize size = {static_cast<int64_t>(20 + random() % 3000),
                            static_cast<int64_t>(20 + random() % 3000)};
    const int64_t factor = i % 2 ? 28 : 32;
    const int64_t low = 4 * factor * factor, high = 1000 * factor * factor;
    const Result<ImageSize> result = smart_resize(size, factor, low, high);
    REQUIRE(result.ok());
    CAPTURE(size.height);
    CAPTURE(size.width);
    CHECK(result->height % factor == 0);
    CHECK(result->width % factor == 0);
    CHECK(result->height * result->width >= low);
    CHECK(result->height * result->width <= high);
  }
}

TEST_CASE("vision_processor/ a size that fits already is kept") {
  CHECK(*smart_resize({320, 960}, 32, 1, 1 << 24) == ImageSize{320, 960});
}

TEST_CASE("vision_processor/ halves are rounded to even, as Python does") {
  CHECK(*smart_resize({42, 70}, 28, 1, 1 << 24) == ImageSize{56, 56});     // 1.5 and 2.5
  CHECK(*smart_resize({98, 126}, 28, 1, 1 << 24) == ImageSize{112, 112});  // 3.5 and 4.5
}

TEST_CASE("vision_processor/ transposing an image transposes its new size") {
  for (int64_t side = 1; side < 400; side += 13) {
    const auto one = smart_resize({side, 331}, 28, 3136, 28224),
               other = smart_resize({331, side}, 28, 3136, 28224);
    REQUIRE(one.ok() == other.ok());
    if (one.ok()) CHECK(*one == ImageSize{other->width, other->height});
  }
}

TEST_CASE("vision_processor/ an aspect ratio of 200 is allowed and more is not") {
  CHECK(smart_resize({10, 2000}, 28, 3136, 1 << 24).ok());
  const Status status = smart_resize({10, 2001}, 28, 3136, 1 << 24).status();
  CHECK(status.code() == Code::kInvalidArgument);
  CHECK(status.message().find("2001 x 10 pixels has an aspect ratio over 200") != std::string::npos);
  CHECK_FALSE(smart_resize({0, 10}, 28, 3136, 1 << 24).ok());
  CHECK_FALSE(smart_resize({10, 10}, 28, 0, 1 << 24).ok());  // would have no pixels
}

TEST_CASE("vision_processor/ the bounds of a video count its frames") {
  CHECK(*smart_resize_video(2, {320, 320}, 2, 32, 1, 2 * 320 * 320) == ImageSize{320, 320});
  const ImageSize smaller = *smart_resize_video(8, {320, 320}, 2, 32, 1, 2 * 320 * 320);
  CHECK(8 * smaller.height * smaller.width <= 2 * 320 * 320);
  CHECK(*smart_resize_video(2, {8, 16}, 2, 32, 1, 1 << 24) ==
        ImageSize{32, 64});  // small frames are enlarged first
  CHECK_FALSE(smart_resize_video(1, {320, 320}, 2, 32, 1, 1 << 24).ok());
}

TEST_CASE("vision_processor/ rows are patches in the order of tokens and columns are channel, frame, y, x") {
  const PatchOptions options = raw(2, 2, 2);
  const std::vector<at::Tensor> frames = {noise(8, 12), noise(8, 12) + 1, noise(8, 12) + 2, noise(8, 12) + 3};
  const PatchedImage patched = *patch_video(frames, options);
  CHECK(patched.grid == std::array<int64_t, 3>{2, 4, 6});
  REQUIRE(patched.pixel_values.sizes() == at::IntArrayRef{48, 24});
  int64_t row = 0;
  for (int t = 0; t < 2; ++t) {
    for (int ty = 0; ty < 2; ++ty) {
      for (int tx = 0; tx < 3; ++tx) {
        for (int p = 0; p < 4; ++p, ++row) {
          for (int64_t i = 0; i < 24; ++i) {
            const int64_t channel = i / 8, frame = i / 4 % 2, y = i / 2 % 2, x = i % 2;
            const at::Tensor expected =
                frames[2 * t + frame][4 * ty + 2 * (p / 2) + y][4 * tx + 2 * (p % 2) + x][channel];
            REQUIRE(patched.pixel_values[row][i].item<float>() == expected.item<uint8_t>());
          }
        }
      }
    }
  }
}

TEST_CASE("vision_processor/ an image is a video of equal frames") {
  const PatchOptions options = raw(4, 2, 1);
  const at::Tensor image = noise(8, 8);
  const PatchedImage one = *patch_image(image, options);
  CHECK(one.grid == std::array<int64_t, 3>{1, 2, 2});
  CHECK(at::equal(one.pixel_values, patch_video({image, image}, options)->pixel_values));
}

TEST_CASE("vision_processor/ the last frame fills up the last temporal patch") {
  const PatchOptions options = raw(4, 2, 1);
  const at::Tensor a = noise(8, 8), b = noise(8, 8) + 1, c = noise(8, 8) + 2;
  const PatchedImage odd = *patch_video({a, b, c}, options);
  CHECK(odd.grid == std::array<int64_t, 3>{2, 2, 2});
  CHECK(at::equal(odd.pixel_values, patch_video({a, b, c, c}, options)->pixel_values));
}

TEST_CASE("vision_processor/ pixels are rescaled and normalized per channel") {
  PatchOptions options = raw(2, 1, 1);
  options.rescale = options.normalize = true;
  options.mean = {0.5, 0.25, 0.0};
  options.std = {0.5, 0.25, 1.0};
  const at::Tensor image = noise(2, 2);
  const at::Tensor scaled = image.permute({2, 0, 1}).to(at::kDouble) / 255.0;
  const at::Tensor mean = at::tensor({0.5, 0.25, 0.0}, at::kDouble).view({3, 1, 1});
  const at::Tensor std = at::tensor({0.5, 0.25, 1.0}, at::kDouble).view({3, 1, 1});
  const at::Tensor expected = ((scaled - mean) / std).reshape({1, 12});
  CHECK(at::allclose(patch_image(image, options)->pixel_values.to(at::kDouble), expected, 0, 1e-6));
}

TEST_CASE("vision_processor/ a cap on patches makes images smaller and says so") {
  PatchOptions options;
  const at::Tensor image = noise(280, 420);
  const PatchedImage whole = *patch_image(image, options);
  CHECK_FALSE(whole.downscaled);
  options.max_patches = whole.patches();
  CHECK_FALSE(patch_image(image, options)->downscaled);
  for (const int64_t cap : {whole.patches() - 1, int64_t{100}, int64_t{4}}) {
    options.max_patches = cap;
    const PatchedImage small = *patch_image(image, options);
    CHECK(small.downscaled);
    CHECK(small.patches() <= cap);
    CHECK(small.pixel_values.size(0) == small.patches());
  }
  options.max_patches = 3;  // less than one token
  CHECK(patch_image(image, options).status().code() == Code::kInvalidArgument);
}

TEST_CASE("vision_processor/ a cap on patches counts all frames of a video") {
  PatchOptions options = *parse_video_options("{}", "v", PixelBudget::kVideo);
  const std::vector<at::Tensor> frames(6, noise(256, 256));
  options.max_patches = 60;
  const PatchedImage video = *patch_video(frames, options);
  CHECK(video.downscaled);
  CHECK(video.grid[0] == 3);
  CHECK(video.patches() <= 60);
  options.max_patches = 11;  // three temporal patches of four patches are more
  CHECK_FALSE(patch_video(frames, options).ok());
}

TEST_CASE("vision_processor/ what cannot become patches is an error") {
  CHECK_FALSE(patch_image(noise(7, 8), raw(4, 2, 1)).ok());  // do_resize false and no multiple
  CHECK_FALSE(patch_video({}, raw(4, 2, 1)).ok());
  CHECK(patch_video({noise(8, 8), noise(8, 4)}, raw(4, 2, 1)).status().message() ==
        "a frame of 4 x 8 pixels follows one of 8 x 8 pixels; all frames of a video must have one size");
  CHECK(patch_image(noise(8, 8).to(at::kFloat), raw(4, 2, 1)).status().code() == Code::kInternal);
  CHECK(patch_image(noise(3, 900), {}).status().message().find("aspect ratio") != std::string::npos);
}

TEST_CASE("vision_processor/ both dialects of the bounds are read and pixels win over edges") {
  const PatchOptions edges =
      *parse_image_options(R"({"size": {"shortest_edge": 64, "longest_edge": 4096}})", "p");
  CHECK(edges.min_pixels == 64);
  CHECK(edges.max_pixels == 4096);
  const PatchOptions pixels = *parse_image_options(R"({"min_pixels": 65, "max_pixels": 4097})", "p");
  CHECK(pixels.min_pixels == 65);
  CHECK(pixels.max_pixels == 4097);
  const PatchOptions both = *parse_image_options(
      R"({"size": {"shortest_edge": 64, "longest_edge": 4096}, "max_pixels": 5000})", "p");
  CHECK(both.min_pixels == 64);
  CHECK(both.max_pixels == 5000);
  const PatchOptions none = *parse_image_options("{}", "p");
  CHECK(none.min_pixels == 3136);
  CHECK(none.max_pixels == 1003520);
}

TEST_CASE("vision_processor/ a wrong value is named with its file and what was expected") {
  CHECK(message(R"({"patch_size": 0})") ==
        "p.json: patch_size is 0, expected an integer from 1 to 1024; correct the file");
  CHECK(message(R"({"merge_size": "2"})").find("merge_size is \"2\"") != std::string::npos);
  CHECK(
      message(R"({"size": {"shortest_edge": 64}})") ==
      R"(p.json: size is {"shortest_edge":64}, expected the keys shortest_edge and longest_edge; correct the file)");
  CHECK(message(R"({"size": 7})").find("size is 7") != std::string::npos);
  CHECK(message(R"({"size": {"shortest_edge": 64, "longest_edge": -1}})").find("size.longest_edge is -1") !=
        std::string::npos);
  CHECK(message(R"({"min_pixels": 64, "max_pixels": 63})").find("the least number of pixels, 64") !=
        std::string::npos);
  CHECK(message(R"({"image_std": [1, 0, 1]})").find("image_std.1 is 0, expected a number over 0") !=
        std::string::npos);
  CHECK(message(R"({"image_mean": [1, 0]})").find("image_mean is [1,0], expected three numbers") !=
        std::string::npos);
  CHECK(message(R"({"do_resize": 1})").find("do_resize is 1, expected true or false") != std::string::npos);
  CHECK(message("{").find("not valid JSON") != std::string::npos);
  CHECK(message("[]").find("expected a JSON object") != std::string::npos);
}

TEST_CASE("vision_processor/ other processors and filters are refused") {
  const auto code = [](const std::string& json) { return parse_image_options(json, "p").status().code(); };
  CHECK(code(R"({"resample": 2})") == Code::kUnsupported);
  CHECK(code(R"({"image_processor_type": "CLIPImageProcessor"})") == Code::kUnsupported);
  CHECK(code(R"({"resample": 3, "image_processor_type": "Qwen2VLImageProcessorFast"})") == Code::kOk);
}

TEST_CASE("vision_processor/ the type in a video configuration decides the budget and the defaults") {
  const auto options = [](const std::string& json) {
    return *parse_video_options(json, "v", PixelBudget::kFrame);
  };
  CHECK(options("{}").budget == PixelBudget::kFrame);
  CHECK(options("{}").patch_size == 14);
  const PatchOptions qwen3 = options(R"({"video_processor_type": "Qwen3VLVideoProcessor"})");
  CHECK(qwen3.budget == PixelBudget::kVideo);
  CHECK(qwen3.patch_size == 16);
  CHECK_FALSE(parse_video_options(R"({"video_processor_type": "Other"})", "v", PixelBudget::kFrame).ok());
}

TEST_CASE("vision_processor/ options come from the checkpoint's folder, nested ones first") {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "slim_vision_processor_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const auto write = [&](const char* file, const char* text) { std::ofstream(folder / file) << text; };
  CHECK(read_image_options(folder).status().code() == Code::kNotFound);
  write("preprocessor_config.json", R"({"patch_size": 10})");
  CHECK(read_image_options(folder)->patch_size == 10);
  CHECK(read_video_options(folder, PixelBudget::kVideo)->patch_size == 10);
  write("video_preprocessor_config.json", R"({"patch_size": 11})");
  CHECK(read_video_options(folder, PixelBudget::kVideo)->patch_size == 11);
  write("processor_config.json",
        R"({"image_processor": {"patch_size": 12}, "video_processor": {"patch_size": 13}})");
  CHECK(read_image_options(folder)->patch_size == 12);
  CHECK(read_video_options(folder, PixelBudget::kVideo)->patch_size == 13);
  write("processor_config.json", R"({"image_processor": {"patch_size": -1}})");
  CHECK(read_image_options(folder).status().message().find(
            "processor_config.json: image_processor: patch_size is -1") != std::string::npos);
  std::filesystem::remove_all(folder);
}
