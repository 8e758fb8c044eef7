#include "common/image/resize.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <utility>
#include <vector>

using namespace slim::model;

namespace {

const std::vector<std::pair<int64_t, int64_t>> kSizes = {{1, 1},   {3, 70},  {16, 16},
                                                         {33, 17}, {64, 96}, {5, 128}};

at::Tensor noise(int64_t images, int64_t height, int64_t width) {
  at::manual_seed(height * 1000 + width);
  return at::randint(0, 256, {images, 3, height, width}, at::kByte);
}

}  // namespace

TEST_CASE("resize/ an image of one colour stays so at any size") {
  const at::Tensor image = at::full({1, 3, 31, 20}, 201, at::kByte);
  for (const auto& [height, width] : kSizes) {
    CHECK(at::equal(resize_bicubic(image, height, width), at::full({1, 3, height, width}, 201, at::kByte)));
  }
}

TEST_CASE("resize/ the same size gives the same image") {
  const at::Tensor image = noise(1, 12, 9);
  CHECK(at::equal(resize_bicubic(image, 12, 9), image));
}

TEST_CASE("resize/ planar images, which is how torchvision passes them, give the same pixels") {
  for (const auto& [from_height, from_width] : kSizes) {
    const at::Tensor image = noise(2, from_height, from_width);
    for (const auto& [height, width] : kSizes) {
      if (height * width == 1) continue;  // LibTorch cannot make a single pixel of planar images
      const at::Tensor expected = at::_upsample_bicubic2d_aa(image, {height, width}, /*align_corners=*/false);
      CHECK(at::equal(resize_bicubic(image, height, width), expected));
    }
  }
}

TEST_CASE("resize/ every image of a batch is resized as if alone") {
  const at::Tensor images = noise(3, 40, 25);
  const at::Tensor resized = resize_bicubic(images, 16, 64);
  for (int64_t i = 0; i < 3; ++i)
    CHECK(at::equal(resized[i], resize_bicubic(images.narrow(0, i, 1), 16, 64)[0]));
}

TEST_CASE("resize/ overshoot at an edge is clamped") {
  at::Tensor image = at::zeros({1, 3, 8, 8}, at::kByte);
  image.narrow(3, 4, 4).fill_(255);
  const at::Tensor resized = resize_bicubic(image, 8, 64).to(at::kInt);
  CHECK(resized.min().item<int>() == 0);
  CHECK(resized.max().item<int>() == 255);
  CHECK((resized.diff(1, 3) >= 0).narrow(3, 20, 23).all().item<bool>());  // no wrap from 255 to 0 across the
                                                                          // edge
}

TEST_CASE("resize/ antialiasing averages the pixels that are left out") {
  at::Tensor image = at::zeros({1, 3, 64, 64}, at::kByte);
  image.slice(3, 0, 64, 2).fill_(200);  // columns alternate between 200 and 0
  const at::Tensor resized = resize_bicubic(image, 8, 8).narrow(3, 1, 6).to(at::kInt);
  CHECK((resized - 100).abs().max().item<int>() <= 4);
}
