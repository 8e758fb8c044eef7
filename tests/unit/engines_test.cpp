#include "engines/engine.h"

#include <doctest/doctest.h>

using namespace slim;

namespace {

/// A block with an attention of `heads` and `key_value_heads` heads of 128, and an MLP of 512, quantized throughout.
struct Served {
  explicit Served(const char* scheme, const char* format = "compressed-tensors", int64_t group_size = 0,
                  int64_t heads = 8, int64_t key_value_heads = 2) {
    BlockPlan block;
    block.name = "layers.0";
    block.stage = "language";
    plan.blocks.push_back(block);
    add("q", Role::kQuery, heads * 128, 256);
    add("k", Role::kKey, key_value_heads * 128, 256);
    add("v", Role::kValue, key_value_heads * 128, 256);
    add("o", Role::kAttentionOutput, 256, heads * 128);
    add("gate", Role::kGate, 512, 256);
    add("up", Role::kUp, 512, 256);
    add("down", Role::kDown, 256, 512);
    plan.blocks[0].fused = {{"qkv", {0, 1, 2}}, {"gate_up", {4, 5}}};
    for (const Layer& layer : plan.blocks[0].layers)
      checkpoint.schemes[layer.name] = *scheme_from_name(scheme, group_size);
    checkpoint.plan = &plan;
    checkpoint.format_id = format;
    checkpoint.heads = heads;
    checkpoint.key_value_heads = key_value_heads;
  }
  Served(const Served&) = delete;

  Layer& add(const std::string& name, Role role, int64_t out, int64_t in) {
    auto& layers = plan.blocks[0].layers;
    Layer layer;
    layer.id = static_cast<LayerId>(layers.size());
    layer.name = name;
    layer.role = role;
    layer.out = out;
    layer.in = in;
    layers.push_back(layer);
    return layers.back();
  }
  void add_experts(const char* scheme) {
    for (int32_t expert = 0; expert < 2; ++expert) {
      for (const char* name : {"up", "down"}) {
        Layer& layer = add("experts." + std::to_string(expert) + "." + name, Role::kOther, 256, 256);
        layer.expert = expert;
        checkpoint.schemes[layer.name] = *scheme_from_name(scheme);
      }
    }
  }
  /// All lines in one; empty: it is served.
  std::string problems(const char* engine, int64_t devices = 1) const {
    const auto lines = engine_problems(checkpoint, engine, devices);
    REQUIRE(lines.ok());
    std::string all;
    for (const std::string& line : *lines) all += line + "\n";
    return all;
  }
  bool refused(const char* engine, const char* words, int64_t devices = 1) const {
    const std::string all = problems(engine, devices);
    CAPTURE(all);
    return all.find(words) != std::string::npos;
  }

  ModelPlan plan;
  ServedCheckpoint checkpoint;
};

}  // namespace

TEST_CASE("engines/ vLLM reads GPTQ of 4 and 8 bits, symmetric, in order") {
  CHECK(Served("w4a16", "gptq").problems("vllm") == "");
  CHECK(Served("w8a16", "gptq").problems("vllm") == "");
  for (const char* scheme : {"w2a16", "w3a16"}) CHECK(Served(scheme, "gptq").refused("vllm", "4 and 8 bits"));
  CHECK(Served("w4a16_asym", "gptq_v2").refused("vllm", "symmetric"));
  Served scattered("w4a16", "gptq");
  scattered.checkpoint.desc_act = true;
  CHECK(scattered.refused("vllm", "desc_act"));
}

TEST_CASE("engines/ vLLM serves 2 to 8 bits of compressed-tensors, of any width that groups divide") {
  for (const char* scheme : {"w2a16", "w3a16", "w4a16", "w4a16_asym", "w8a16", "w8a8", "fp8_dynamic"})
    CHECK(Served(scheme).problems("vllm") == "");
  Served narrow("w4a16", "compressed-tensors", 32);
  narrow.add("narrow", Role::kOther, 32, 96);
  narrow.checkpoint.schemes["narrow"] = *scheme_from_name("w4a16", 32);
  CHECK(narrow.problems("vllm") == "");
  CHECK(Served("w4a16", "compressed-tensors", 16).refused("vllm", "groups of 16"));
  CHECK(Served("w4a16_asym", "awq", 16).problems("vllm") == "");
  CHECK(Served("w8a16_asym").refused("vllm", "zero points"));
}

TEST_CASE("engines/ vLLM deals out heads, and copies those of keys and values") {
  CHECK(Served("fp8_dynamic", "compressed-tensors", 0, 28, 4).refused("vllm", "28 attention heads", 8));
  CHECK(Served("fp8_dynamic", "compressed-tensors", 0, 28, 4).problems("vllm", 4) == "");
  CHECK(Served("fp8_block", "compressed-tensors", 0, 4, 2).problems("vllm", 4) == "");
  CHECK(Served("w4a16").refused("vllm", "groups of 128", 8));  // down_proj: 64 inputs on a device
  CHECK(Served("w4a16").problems("vllm", 4) == "");
}

TEST_CASE("engines/ experts have one scheme") {
  Served mixed("w4a16");
  mixed.add_experts("w4a16");
  CHECK(mixed.problems("vllm") == "");
  mixed.checkpoint.schemes["experts.1.down"] = *scheme_from_name("w8a16");
  for (const char* engine : {"vllm", "transformers", "lmdeploy"})
    CHECK(mixed.refused(engine, "experts.1.down"));
  mixed.checkpoint.schemes.erase("experts.1.down");
  CHECK(mixed.refused("vllm", "one scheme"));
}

TEST_CASE("engines/ layers that are merged have one scheme") {
  Served split("w4a16");
  split.checkpoint.schemes["k"] = *scheme_from_name("w8a16");
  CHECK(split.refused("vllm", "k and q"));
}

TEST_CASE("engines/ transformers loads no experts with zero points") {
  Served served("w4a16_asym");
  CHECK(served.problems("transformers") == "");
  served.add_experts("w4a16_asym");
  CHECK(served.refused("transformers", "zero points"));
}

TEST_CASE("engines/ TurboMind takes 4 bits in groups of 128, of compressed-tensors of 32 too") {
  CHECK(Served("w4a16", "gptq").problems("lmdeploy") == "");
  CHECK(Served("w4a16", "gptq", 32).refused("lmdeploy", "groups of 128"));
  CHECK(Served("w4a16", "compressed-tensors", 32).problems("lmdeploy") == "");
  CHECK(Served("w4a16", "compressed-tensors", 64).refused("lmdeploy", "32 and 128"));
  CHECK(Served("w8a16").refused("lmdeploy", "8 bits"));
}

TEST_CASE("engines/ vLLM-Ascend has classes for some of what the format holds") {
  CHECK(Served("w8a8").refused("vllm-ascend", "--format ascend"));
  CHECK(Served("w8a8", "ascend").problems("vllm-ascend") == "");
  CHECK(Served("w8a8", "ascend").refused("vllm", "format ascend"));
  CHECK(Served("w4a16", "ascend").refused("vllm-ascend", "W4A16"));
  CHECK(Served("w8a16", "ascend").refused("vllm-ascend", "--group-size -1"));
  CHECK(Served("w8a16", "ascend", -1).problems("vllm-ascend") == "");
  Served sparse("w8a8s", "ascend");
  CHECK(sparse.refused("vllm-ascend", "float16"));
  sparse.checkpoint.dtype = at::kHalf;
  CHECK(sparse.problems("vllm-ascend") == "");
  Served experts("w8a8", "ascend");
  experts.add_experts("w8a8_static");
  CHECK(experts.refused("vllm-ascend", "dynamic"));
}

TEST_CASE("engines/ what is the same of many layers is one line, and an unknown engine is named") {
  const Served served("w3a16", "gptq");
  CHECK(served.problems("vllm") ==
        "q (and 6 more): vLLM 0.32 reads GPTQ weights of 4 and 8 bits, not of 3\n");
  const auto unknown = engine_problems(served.checkpoint, "vlm", 1);
  CHECK(unknown.status().code() == Code::kInvalidArgument);
  CHECK(unknown.status().message().find("did you mean 'vllm'") != std::string::npos);
}

TEST_CASE("engines/ numbers of heads are those of the language model") {
  ServedCheckpoint served;
  read_heads(
      R"({"num_attention_heads": 3, "text_config": {"num_attention_heads": 16, "num_key_value_heads": 8}})",
      served);
  CHECK(served.heads == 16);
  CHECK(served.key_value_heads == 8);
  read_heads(R"({"num_attention_heads": 12})", served);
  CHECK(served.key_value_heads == 12);
}
