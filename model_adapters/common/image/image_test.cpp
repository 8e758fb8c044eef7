#include "common/image/image.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

using namespace slim;
using namespace slim::model;

namespace {

const std::string kFolder = "tests/data/images/";
/// Small files of all formats and of both kinds of JPEG and WebP.
const std::vector<std::string> kFiles = {"plain.png",       "palette.png",   "baseline.jpg",
                                         "progressive.jpg", "lossless.webp", "lossy.webp"};

std::string contents(const std::string& file) {
  std::ifstream stream(kFolder + file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

at::Tensor pixels(const std::string& file, Orientation orientation = Orientation::kAsStored) {
  const Result<at::Tensor> image = read_image(kFolder + file, {}, orientation);
  REQUIRE_MESSAGE(image.ok(), image.status().message());
  return *image;
}

Status failure(const std::string& bytes, const ImageLimits& limits = {}) {
  return decode_image(bytes, "pics/cat.png", limits).status();
}

}  // namespace

TEST_CASE("image/ pixels are contiguous bytes of height, width and three colours") {
  for (const std::string& file : kFiles) {
    CAPTURE(file);
    const at::Tensor image = pixels(file);
    CHECK(image.sizes() == at::IntArrayRef{9, 14, 3});
    CHECK((image.scalar_type() == at::kByte));
    CHECK(image.is_contiguous());
  }
}

TEST_CASE("image/ lossless formats agree about a picture") {
  CHECK(at::equal(pixels("plain.png"), pixels("lossless.webp")));
}

TEST_CASE("image/ lossy pixels are those that Pillow has stored as PNG") {
  for (const std::string file : {"baseline_jpg", "progressive_jpg", "lossy_webp"}) {
    std::string original = file;
    original.replace(original.find('_'), 1, ".");
    CHECK_MESSAGE(at::equal(pixels(original), pixels(file + ".png")), file);
  }
}

TEST_CASE("image/ the orientation tag turns an image only when asked to") {
  for (const std::string suffix : {"png", "webp", "jpg"}) {
    CAPTURE(suffix);
    const std::string file = "turned." + suffix;
    const at::Tensor stored = pixels(suffix == "jpg" ? "baseline.jpg" : "plain.png");
    CHECK(at::equal(pixels(file), stored));
    CHECK(at::equal(pixels(file, Orientation::kFromExif), stored.rot90(-1, {0, 1})));
  }
}

TEST_CASE("image/ a file without orientation is not turned") {
  CHECK(at::equal(pixels("plain.png", Orientation::kFromExif), pixels("plain.png")));
  CHECK(at::equal(pixels("progressive.jpg", Orientation::kFromExif), pixels("progressive.jpg")));
}

TEST_CASE("image/ every truncated file is an error or has all of its pixels") {
  for (const std::string& file : kFiles) {
    const std::string whole = contents(file);
    const at::Tensor expected = pixels(file);
    size_t refused = 0;
    for (size_t size = 0; size < whole.size(); ++size) {
      const Result<at::Tensor> image = decode_image(whole.substr(0, size), file);
      refused += !image.ok();
      if (image.ok()) CHECK_MESSAGE(at::equal(*image, expected), file << " cut at " << size);
    }
    // Only the last chunk of a PNG, which has no pixels, may be missing.
    CHECK_MESSAGE(refused + 12 >= whole.size(), file << ": " << refused << " of " << whole.size());
    if (!file.ends_with(".png")) CHECK(refused == whole.size());
  }
}

TEST_CASE("image/ damaged bytes give an error or an image of a legal size") {
  const ImageLimits limits{.max_pixels = 1 << 16};
  for (const std::string& file : kFiles) {
    const std::string whole = contents(file);
    for (size_t at = 0; at < whole.size(); ++at) {
      for (const int flip : {0x01, 0x80, 0xff}) {
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ flip);
        for (const Orientation orientation : {Orientation::kAsStored, Orientation::kFromExif}) {
          const Result<at::Tensor> image = decode_image(bytes, file, limits, orientation);
          if (image.ok()) CHECK(image->numel() <= 3 * limits.max_pixels);
          if (!image.ok()) CHECK(image.status().message().starts_with(file));
        }
      }
    }
  }
}

TEST_CASE("image/ a damaged orientation block never reads outside of the file") {
  for (const std::string file : {"turned.jpg", "turned.png", "turned.webp"}) {
    const std::string whole = contents(file);
    for (size_t at = 0; at < whole.size(); ++at) {
      for (const int flip : {0x01, 0x7f, 0xff}) {
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ flip);
        const Result<at::Tensor> image =
            decode_image(bytes, file, {.max_pixels = 1 << 16}, Orientation::kFromExif);
        if (image.ok()) CHECK(image->size(2) == 3);
      }
    }
  }
}

TEST_CASE("image/ the limit on pixels is inclusive and is named with the size") {
  for (const std::string& file : kFiles) {
    CHECK(decode_image(contents(file), file, {.max_pixels = 9 * 14}).ok());
    const Status status = failure(contents(file), {.max_pixels = 9 * 14 - 1});
    CHECK(status.code() == Code::kInvalidArgument);
    CHECK(status.message() ==
          "pics/cat.png: image has 14 x 9 pixels, over the limit of 125 pixels; make it smaller or leave it "
          "out");
  }
}

TEST_CASE("image/ a PNG header that promises gigabytes is refused before memory is taken") {
  std::string bytes = contents("plain.png");
  bytes.replace(16, 8, std::string("\x7f\xff\xff\xff\x7f\xff\xff\xff", 8));
  CHECK_FALSE(failure(bytes).ok());
}

TEST_CASE("image/ other formats are called by their names") {
  using namespace std::string_literals;
  const std::vector<std::pair<std::string, std::string>> formats = {
      {"GIF89a....", "GIF"},  {"BM......", "BMP"},      {"II*\0...."s, "TIFF"},
      {"MM\0*...."s, "TIFF"}, {"....ftypavif", "AVIF"}, {"....ftypheic", "HEIC"}};
  for (const auto& [bytes, format] : formats) {
    const Status status = failure(bytes);
    CHECK(status.code() == Code::kUnsupported);
    CHECK(status.message() == "pics/cat.png: this is a " + format +
                                  " file, but only JPEG, PNG and WebP images are read; convert the file");
  }
}

TEST_CASE("image/ an empty file is damaged and garbage is of no known format") {
  CHECK(failure("").message() ==
        "pics/cat.png: this image is damaged: the file is empty; replace the file or leave it out");
  CHECK(failure("").code() == Code::kCorrupt);
  CHECK(failure("hello, world").code() == Code::kUnsupported);
}

TEST_CASE("image/ a truncated file is said to end too early") {
  const std::string half = contents("baseline.jpg").substr(0, 200);
  CHECK(failure(half).code() == Code::kCorrupt);
  CHECK(failure(half).message() ==
        "pics/cat.png: JPEG image is damaged: the data end too early, after 200 bytes; replace the file or "
        "leave it out");
  CHECK(failure(contents("plain.png").substr(0, 60)).message().find("the data end too early") !=
        std::string::npos);
}

TEST_CASE("image/ the content decides about the format, not the name") {
  CHECK(decode_image(contents("baseline.jpg"), "wrong.png").ok());
}

TEST_CASE("image/ a missing file, a folder and a file over the limit are errors") {
  CHECK(read_image("tests/data/images/none.jpg").status().code() == Code::kNotFound);
  CHECK(read_image("tests/data/images").status().code() == Code::kNotFound);
  const Status status = read_image(kFolder + "plain.png", {.max_file_bytes = 10}).status();
  CHECK(status.code() == Code::kInvalidArgument);
  CHECK(status.message().find("over the limit of 10") != std::string::npos);
}
