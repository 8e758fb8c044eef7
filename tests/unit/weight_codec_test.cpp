#include "compress/weight_codec.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <random>

#include "compress/huffman.h"

using namespace slim;

namespace {

at::Tensor gaussian_codes(int64_t n, int64_t k, double deviation) {
  at::manual_seed(static_cast<uint64_t>(n * 1000 + k));
  return (at::randn({n, k}) * deviation).round_().clamp_(-128, 127).to(at::kChar);
}

CompressedWeight copy(const CompressedWeight& weight) {
  return {weight.weight.clone(), weight.index.clone(), weight.info.clone()};
}

double entropy(const ByteCounts& counts) {
  double total = 0, bits = 0;
  for (const uint64_t count : counts) total += static_cast<double>(count);
  for (const uint64_t count : counts) {
    if (count > 0) bits -= static_cast<double>(count) * std::log2(static_cast<double>(count) / total);
  }
  return bits;
}

}  // namespace

TEST_CASE("weight codec/ NZ order is that of its definition, and back, for every shape") {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 32}, {1, 1}, {17, 33}, {48, 96}, {5, 300}}) {
    const at::Tensor weight = at::arange(n * k).remainder(251).sub(125).to(at::kChar).view({n, k});
    const at::Tensor nz = to_nz(weight);
    CHECK(nz.sizes() == at::IntArrayRef({(k + 31) / 32, (n + 15) / 16, 16, 32}));
    for (const auto& [row, column] : {std::pair<int64_t, int64_t>{0, 0}, {n - 1, k - 1}, {n / 2, k / 3}}) {
      CHECK(nz[column / 32][row / 16][row % 16][column % 32].item<int>() == weight[row][column].item<int>());
    }
    CHECK(at::equal(from_nz(nz, n, k), weight));
  }
}

TEST_CASE("weight codec/ every matrix comes back exactly") {
  for (const auto& [n, k] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 32}, {129, 257}, {200, 700}, {3, 1000}}) {
    for (const double deviation : {0.0, 0.3, 3.0, 40.0, 200.0}) {
      const at::Tensor weight = gaussian_codes(n, k, deviation);
      const CompressedWeight stored = compress_weight(weight);
      CHECK(stored.weight.numel() <= largest_compressed(n, k));
      CHECK(stored.index.numel() == 8 * tile_count(n, k));
      const auto back = decompress_weight(stored);
      REQUIRE(back.ok());
      CHECK(at::equal(*back, weight));
    }
  }
}

TEST_CASE("weight codec/ the size is within two percent of the bytes' entropy") {
  const at::Tensor weight = gaussian_codes(256, 512, 3.0);
  ByteCounts counts{};
  const auto* bytes = weight.const_data_ptr<int8_t>();
  for (int64_t i = 0; i < weight.numel(); ++i) ++counts[static_cast<uint8_t>(bytes[i])];
  const double ideal = entropy(counts) / 8;
  CHECK(static_cast<double>(compress_weight(weight).weight.numel()) < 1.02 * ideal + 200);
}

TEST_CASE("weight codec/ code lengths are complete, optimal without the limit, and at most 12 with it") {
  ByteCounts fibonacci{};  // unlimited Huffman codes of these grow by one bit each
  uint64_t a = 1, b = 1;
  for (size_t i = 0; i < 40; ++i) {
    fibonacci[i] = a;
    std::tie(a, b) = std::pair(b, a + b);
  }
  const CodeLengths limited = code_lengths(fibonacci);
  CHECK(*std::max_element(limited.begin(), limited.end()) == 12);
  CHECK(HuffmanDecoder::make(limited).ok());
  ByteCounts simple{};
  simple[0] = 4;
  simple[7] = 2;
  simple[9] = 1;
  simple[255] = 1;
  const CodeLengths exact = code_lengths(simple);
  CHECK(exact[0] == 1);
  CHECK(exact[7] == 2);
  CHECK(exact[9] == 3);
  CHECK(exact[255] == 3);
  CodeLengths wrong{};
  CHECK(HuffmanDecoder::make(wrong).status().code() == Code::kCorrupt);
  wrong.fill(1);
  CHECK(HuffmanDecoder::make(wrong).status().code() == Code::kCorrupt);
  wrong = {};
  wrong[1] = 15;
  CHECK(HuffmanDecoder::make(wrong).status().code() == Code::kCorrupt);
}

TEST_CASE("weight codec/ every flipped bit, cut and foreign info is an error") {
  const at::Tensor weight = gaussian_codes(150, 300, 2.0);
  const CompressedWeight good = compress_weight(weight);
  std::mt19937 random(7);
  for (int trial = 0; trial < 600; ++trial) {
    CompressedWeight bad = copy(good);
    at::Tensor& part = trial % 3 == 0 ? bad.weight : trial % 3 == 1 ? bad.index : bad.info;
    auto* bytes = static_cast<uint8_t*>(part.data_ptr());
    const size_t at = random() % part.nbytes();
    bytes[at] ^= static_cast<uint8_t>(1U << random() % 8);
    const auto result = decompress_weight(bad);
    CAPTURE(trial);
    CHECK_FALSE(result.ok());
    if (!result.ok()) CHECK(result.status().code() == Code::kCorrupt);
  }
  for (const int64_t length : {int64_t{0}, int64_t{1}, int64_t{132}, int64_t{133}, good.weight.numel() - 1}) {
    CompressedWeight cut = copy(good);
    cut.weight = good.weight.narrow(0, 0, length);
    CHECK(decompress_weight(cut).status().code() == Code::kCorrupt);
  }
  CompressedWeight bad = copy(good);
  bad.weight = at::cat({good.weight, at::zeros({1}, at::kChar)});
  CHECK(decompress_weight(bad).status().code() == Code::kCorrupt);
  for (const int64_t size : {int64_t{0}, int64_t{-5}, int64_t{1} << 40}) {
    bad = copy(good);
    bad.info[2] = size;
    CHECK(decompress_weight(bad).status().code() == Code::kCorrupt);
  }
  bad = copy(good);
  bad.info = at::zeros({5});
  CHECK(decompress_weight(bad).status().code() == Code::kCorrupt);
}

TEST_CASE("weight codec/ random bytes never crash the reader") {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    CompressedWeight noise = compress_weight(gaussian_codes(40, 70, 5.0));
    auto* bytes = noise.weight.mutable_data_ptr<int8_t>();
    for (int64_t i = 5 + trial % 2 * 128; i < noise.weight.numel(); ++i)
      bytes[i] = static_cast<int8_t>(random());
    CHECK_FALSE(decompress_weight(noise).ok());
  }
}
