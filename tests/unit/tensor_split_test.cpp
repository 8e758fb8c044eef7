#include "compress/tensor_split.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace slim;

namespace {

/// One block with the layers of these roles, 8 x 12 each, and W8A8S tensors for all.
struct Fixture {
  explicit Fixture(const std::vector<Role>& roles, const std::string& stage = "language") {
    BlockPlan block;
    block.stage = stage;
    for (const Role role : roles) {
      Layer layer;
      layer.name = "layer" + std::to_string(block.layers.size());
      layer.role = role;
      layer.out = 8;
      layer.in = 12;
      block.layers.push_back(layer);
      add(layer.name + ".weight", {8, 12});
      for (const char* part : {"deq_scale", "quant_bias", "bias"}) add(layer.name + "." + part, {8});
      for (const char* part : {"input_scale", "input_offset"}) add(layer.name + "." + part, {1});
    }
    plan.blocks = {block};
  }
  void add(const std::string& name, std::vector<int64_t> shape) {
    tensors[name] = {name, Dtype::kF32, std::move(shape)};
  }

  ModelPlan plan;
  std::map<std::string, TensorSpec> tensors;
};

}  // namespace

TEST_CASE(
    "tensor split/ column-parallel layers are split by rows, row-parallel ones by columns with one bias") {
  const Fixture model({Role::kGate, Role::kDown, Role::kRouter});
  const auto splits = *split_of(model.plan, model.tensors, {}, 2);
  for (const char* part : {".weight", ".deq_scale", ".quant_bias", ".bias"})
    CHECK(splits.at(std::string("layer0") + part) == Split::kRows);
  CHECK(splits.at("layer1.weight") == Split::kColumns);
  CHECK(splits.at("layer1.quant_bias") == Split::kFirst);
  CHECK(splits.at("layer1.bias") == Split::kFirst);
  CHECK_FALSE(splits.contains("layer1.deq_scale"));
  for (const char* name : {"layer0.input_scale", "layer1.input_offset", "layer2.weight"})
    CHECK_FALSE(splits.contains(name));
  CHECK(split_of(Fixture({Role::kGate}, "vision").plan, model.tensors, {}, 2)->empty());
}

TEST_CASE("tensor split/ one scale for the matrix is copied") {
  Fixture model({Role::kGate});
  model.add("layer0.deq_scale", {1});
  CHECK_FALSE(split_of(model.plan, model.tensors, {}, 2)->contains("layer0.deq_scale"));
}

TEST_CASE("tensor split/ ranks that do not divide channels or heads are refused with both numbers") {
  const Fixture model({Role::kUp, Role::kKey});
  const auto channels = split_of(model.plan, model.tensors, {}, 3).status();
  CHECK(channels.code() == Code::kInvalidArgument);
  CHECK(channels.message().find("--tp 3 does not divide the 8 rows of layer0") != std::string::npos);
  const auto heads = split_of(model.plan, model.tensors, {4, 2}, 4).status();
  CHECK(heads.message().find("2 heads of layer1") != std::string::npos);
  CHECK(split_of(model.plan, model.tensors, {4, 2}, 2).ok());
}

TEST_CASE("tensor split/ parts join to the whole for every split and number of ranks") {
  const at::Tensor matrix = at::arange(96).view({8, 12}), vector = at::arange(8);
  for (const int64_t ranks : {1, 2, 4}) {
    for (const Split split : {Split::kCopy, Split::kRows, Split::kColumns, Split::kFirst}) {
      for (const at::Tensor& whole : {matrix, vector}) {
        if (whole.dim() == 1 && split == Split::kColumns) continue;
        std::vector<at::Tensor> parts;
        for (int64_t rank = 0; rank < ranks; ++rank) parts.push_back(part_of(whole, split, rank, ranks));
        const auto joined = join_parts(parts, split);
        REQUIRE(joined.ok());
        CHECK(at::equal(*joined, whole));
      }
    }
  }
}

TEST_CASE("tensor split/ parts that contradict one another are refused") {
  const at::Tensor ones = at::ones({4});
  CHECK(join_parts({ones, ones * 2}, Split::kCopy).status().code() == Code::kCorrupt);
  CHECK(join_parts({ones, ones}, Split::kFirst).status().code() == Code::kCorrupt);
  CHECK(join_parts({ones, at::ones({5})}, Split::kCopy).status().code() == Code::kCorrupt);
  CHECK(join_parts({at::ones({4, 2}), at::ones({4, 3})}, Split::kColumns).status().code() == Code::kCorrupt);
  CHECK(join_parts({ones, ones}, Split::kColumns).status().code() == Code::kCorrupt);
}

TEST_CASE("tensor split/ names of splits are read back, others are none") {
  for (const Split split : {Split::kCopy, Split::kRows, Split::kColumns, Split::kFirst})
    CHECK(split_from_name(split_name(split)) == split);
  CHECK_FALSE(split_from_name("half"));
}
