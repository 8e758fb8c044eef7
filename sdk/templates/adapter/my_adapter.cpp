// SPDX-License-Identifier: Apache-2.0
// A decoder in the manner of Llama: RMS norms, rotary positions, grouped-query attention and a gated feed-forward part. Its
// tokens are the bytes of the text, so that it needs no tokenizer file.
#include <ATen/ATen.h>

#include <charconv>
#include <cmath>
#include <regex>

#include "slim/plugin.hpp"

namespace {
using namespace slim;

// ---- configuration and text -------------------------------------------------------------------------------------------

struct Config {
  int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  double epsilon = 0, theta = 0;
};

/// A number at the top of config.json. (With keys of the same name in inner objects, use a JSON library.)
template <class Number>
Status read(std::string_view json, const std::string& key, Number& value) {
  const std::regex pattern("\"" + key + "\"\\s*:\\s*([-+0-9.eE]+)");
  std::match_results<std::string_view::const_iterator> found;
  if (!std::regex_search(json.begin(), json.end(), found, pattern)) {
    return {Code::kInvalidArgument, "config.json: \"" + key + "\" is missing, or no number"};
  }
  const std::string text = found[1];
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc{} && stop == text.data() + text.size() && value > 0) return {};
  return {Code::kInvalidArgument, "config.json: \"" + key + "\" is " + text + ", expected a positive number"};
}

Result<Config> read_config(std::string_view json) {
  Config config;
  const std::pair<const char*, int64_t*> sizes[] = {
      {"hidden_size", &config.hidden},           {"intermediate_size", &config.intermediate}, {"num_hidden_layers", &config.layers},
      {"num_attention_heads", &config.heads},    {"num_key_value_heads", &config.kv_heads},   {"head_dim", &config.head_dim},
      {"vocab_size", &config.vocabulary}};
  for (const auto& [key, value] : sizes) SLIM_TRY(read(json, key, *value));
  SLIM_TRY(read(json, "rms_norm_eps", config.epsilon));
  SLIM_TRY(read(json, "rope_theta", config.theta));
  const bool fits = config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0 && config.vocabulary >= 256;
  if (fits) return config;
  return Status(Code::kInvalidArgument, "config.json: num_key_value_heads must divide num_attention_heads, head_dim be even, "
                                        "vocab_size at least 256");
}

at::Tensor ids_tensor(const std::vector<int64_t>& ids) { return at::tensor(at::ArrayRef<int64_t>(ids), at::kLong); }

/// A token is a byte. Chats are written as "role: text" lines.
class ByteProcessor final : public Processor {
 public:
  Result<Sample> encode(const Document& document, const EncodeOptions& options) const override {
    std::string text = document.messages.empty() ? document.text : "";
    for (const Message& message : document.messages) {
      text += message.role + ": ";
      for (const ContentPart& part : message.content) {
        if (part.kind != ContentPart::Kind::kText) return Status(Code::kUnsupported, "the model takes no images");
        text += part.text;
      }
      text += "\n";
    }
    if (options.generation_prompt) text += "assistant: ";
    if (options.max_tokens > 0) text.resize(std::min(text.size(), static_cast<size_t>(options.max_tokens)));
    SLIM_ASSIGN(const std::vector<int64_t> ids, tokenize(text));
    Sample sample;
    sample.tensors["input_ids"] = ids_tensor(ids);
    sample.origin = document.origin;
    sample.text_tokens = static_cast<int64_t>(ids.size());
    return sample;
  }
  Result<std::vector<int64_t>> tokenize(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  Result<std::string> decode(std::span<const int64_t> ids) const override {
    std::string text;
    for (const int64_t id : ids) text += id < 256 ? static_cast<char>(id) : '?';
    return text;
  }
  std::vector<int64_t> stop_tokens() const override { return {0}; }
};

// ---- the model --------------------------------------------------------------------------------------------------------

/// Layers of a block in the order of the plan, and its regions.
enum LayerIndex : LayerId { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown };
enum RegionIndex : RegionId { kAttention, kFeedForward };

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const at::Tensor wide = x.to(at::kFloat);
  return (wide * at::rsqrt(wide.square().mean(-1, true) + epsilon)).to(x.scalar_type()) * weight;
}

/// Rotates x [tokens, heads, head_dim] by the angles of `cos` and `sin` [tokens, head_dim].
at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return x * cos.unsqueeze(1) + at::cat({-halves[1], halves[0]}, -1) * sin.unsqueeze(1);
}

class MyAdapter final : public ModelAdapter {
 public:
  Result<ModelPlan> plan(std::string_view config_json, const std::map<std::string, TensorSpec>& tensors) override {
    SLIM_ASSIGN(config_, read_config(config_json));
    ModelPlan plan;
    plan.family = "my_adapter";
    plan.globals = {"model.embed_tokens.weight"};
    plan.default_ignore = {"lm_head"};
    for (int64_t i = 0; i < config_.layers; ++i) plan.blocks.push_back(decoder_block(i));
    plan.blocks.push_back(head_block());
    std::map<std::string, std::vector<int64_t>> expected{{plan.globals[0], {config_.vocabulary, config_.hidden}}};
    for (const BlockPlan& block : plan.blocks) {
      for (const std::string& norm : block.params) expected[norm] = {config_.hidden};
      for (const Layer& layer : block.layers) expected[layer.weight.tensor] = {layer.out, layer.in};
    }
    SLIM_TRY(check_tensors(expected, tensors));
    return plan;
  }

  Result<std::unique_ptr<Processor>> processor(const std::string&) const override {
    return std::unique_ptr<Processor>(new ByteProcessor());
  }

  Result<Carry> begin(std::span<const Sample> samples, Exec& exec) override {
    std::vector<at::Tensor> ids, positions;
    std::vector<int64_t> lengths;
    for (const Sample& sample : samples) {
      ids.push_back(sample.tensors.at("input_ids").flatten());
      lengths.push_back(ids.back().size(0));
      if (lengths.back() == 0) return Status(Code::kInvalidArgument, sample.origin + ": the sample has no text");
      positions.push_back(at::arange(lengths.back(), at::kLong));
    }
    return carry_of(at::cat(ids), at::cat(positions), ids_tensor(lengths), exec);
  }

  Status enter(std::string_view, Exec&, Carry&) override { return {}; }  // nothing happens between "language" and "head"

  Status forward(const BlockPlan& block, Exec& exec, Carry& carry) override {
    at::Tensor hidden = carry.at("hidden");
    if (block.stage == "head") {
      const auto wanted = carry.find("logit_rows");
      if (wanted != carry.end()) hidden = hidden.index_select(0, wanted->second);
      carry["logits"] = exec.linear(0, norm(block, 0, exec, hidden)).to(at::kFloat);
      return {};
    }
    for (const RegionId region : {kAttention, kFeedForward}) {
      exec.region_input(region, hidden);
      SLIM_ASSIGN(const at::Tensor output, forward_region(block, region, exec, carry, hidden));
      hidden = hidden + output;
    }
    carry["hidden"] = hidden;
    return {};
  }

  Result<at::Tensor> forward_region(const BlockPlan& block, RegionId region, Exec& exec, const Carry& carry,
                                    const at::Tensor& x) override {
    const at::Tensor input = norm(block, region, exec, x);
    if (region == kAttention) return exec.linear(kOutput, attention(block, exec, carry, input));
    return exec.linear(kDown, at::silu(exec.linear(kGate, input)) * exec.linear(kUp, input));
  }

  Result<Carry> next(const Carry& previous, const at::Tensor& token_ids, Exec& exec) override {
    return carry_of(token_ids, previous.at("next_position"), at::ones_like(token_ids), exec);
  }

 private:
  // ---- plan ----
  static void add_linear(BlockPlan& block, const std::string& name, Role role, int64_t out, PortId input) {
    Layer layer;
    layer.id = static_cast<LayerId>(block.layers.size());
    layer.name = name;
    layer.role = role;
    layer.input = input;
    layer.weight.tensor = name + ".weight";
    layer.out = out;
    layer.in = block.ports[static_cast<size_t>(input)].features;
    block.layers.push_back(layer);
  }

  BlockPlan decoder_block(int64_t index) const {
    const int64_t queries = config_.heads * config_.head_dim, keys = config_.kv_heads * config_.head_dim;
    BlockPlan block;
    block.index = static_cast<int32_t>(index);
    block.name = "model.layers." + std::to_string(index);
    block.stage = "language";
    block.ports = {{0, "attention_input", config_.hidden}, {1, "output_input", queries}, {2, "mlp_input", config_.hidden},
                   {3, "down_input", config_.intermediate}};
    block.regions = {{kAttention, "attention"}, {kFeedForward, "mlp"}};
    block.params = {block.name + ".input_layernorm.weight", block.name + ".post_attention_layernorm.weight"};
    const std::string attention = block.name + ".self_attn.", mlp = block.name + ".mlp.";
    add_linear(block, attention + "q_proj", Role::kQuery, queries, 0);
    add_linear(block, attention + "k_proj", Role::kKey, keys, 0);
    add_linear(block, attention + "v_proj", Role::kValue, keys, 0);
    add_linear(block, attention + "o_proj", Role::kAttentionOutput, config_.hidden, 1);
    add_linear(block, mlp + "gate_proj", Role::kGate, config_.intermediate, 2);
    add_linear(block, mlp + "up_proj", Role::kUp, config_.intermediate, 2);
    add_linear(block, mlp + "down_proj", Role::kDown, config_.hidden, 3);
    block.fused = {{"qkv", {kQuery, kKey, kValue}}, {"gate_up", {kGate, kUp}}};
    add_edges(block);
    return block;
  }

  /// Where a scale may be moved from activations into weights: norm -> q,k,v; v -> o; norm -> gate,up; up -> down.
  void add_edges(BlockPlan& block) const {
    ScaleEdge edge;
    for (const RegionId region : {kAttention, kFeedForward}) {
      edge.name = region == kAttention ? "input_layernorm -> q, k, v" : "post_attention_layernorm -> gate, up";
      edge.port = region == kAttention ? 0 : 2;
      edge.norm_weight = block.params[static_cast<size_t>(region)];
      edge.consumers = block.fused[static_cast<size_t>(region)].layers;
      edge.region = region;
      block.edges.push_back(edge);
    }
    ScaleEdge rows;
    rows.fold = Fold::kLinearRows;
    rows.name = "v -> o";
    rows.port = 1;
    rows.producers = {kValue};
    rows.consumers = {kOutput};
    rows.repeat = config_.heads / config_.kv_heads;
    rows.head_dim = config_.head_dim;
    block.edges.push_back(rows);
    rows.name = "up -> down";
    rows.port = 3;
    rows.producers = {kUp};
    rows.consumers = {kDown};
    rows.repeat = 1;
    block.edges.push_back(rows);
  }

  BlockPlan head_block() const {
    BlockPlan block;
    block.index = static_cast<int32_t>(config_.layers);
    block.name = "lm_head";
    block.stage = "head";
    block.ports = {{0, "head_input", config_.hidden}};
    block.params = {"model.norm.weight"};
    add_linear(block, "lm_head", Role::kHead, config_.vocabulary, 0);
    return block;
  }

  static Status check_tensors(const std::map<std::string, std::vector<int64_t>>& expected,
                              const std::map<std::string, TensorSpec>& tensors) {
    for (const auto& [name, shape] : expected) {
      const auto found = tensors.find(name);
      if (found == tensors.end()) return {Code::kCorrupt, "tensor " + name + " is missing, config.json asks for it"};
      if (found->second.shape == shape) continue;
      return {Code::kCorrupt, "tensor " + name + " has shape " + shape_string(found->second.shape) + ", config.json asks for " +
                                  shape_string(shape)};
    }
    for (const auto& [name, spec] : tensors) {
      if (!expected.contains(name)) return {Code::kUnsupported, "tensor " + name + " does not belong to this architecture"};
    }
    return {};
  }

  // ---- forward ----
  at::Tensor norm(const BlockPlan& block, int32_t index, Exec& exec, const at::Tensor& x) const {
    return rms_norm(x, exec.param(block.params[static_cast<size_t>(index)]), config_.epsilon);
  }

  Carry carry_of(const at::Tensor& ids, const at::Tensor& positions, const at::Tensor& lengths, Exec& exec) const {
    const at::Tensor exponents = at::arange(0, config_.head_dim, 2, at::kFloat) / static_cast<double>(config_.head_dim);
    const at::Tensor angles = positions.to(at::kFloat).unsqueeze(1) / at::pow(config_.theta, exponents);
    const at::Tensor both = at::cat({angles, angles}, 1);
    const at::Tensor last = lengths.cumsum(0) - 1;
    return {{"hidden", exec.rows("model.embed_tokens.weight", ids)},
            {"lengths", lengths},
            {"cos", both.cos().to(exec.device(), exec.dtype())},
            {"sin", both.sin().to(exec.device(), exec.dtype())},
            {"next_position", positions.index_select(0, last) + 1}};
  }

  at::Tensor attention(const BlockPlan& block, Exec& exec, const Carry& carry, const at::Tensor& x) const {
    const auto heads = [&](LayerId id) { return exec.linear(id, x).unflatten(-1, {-1, config_.head_dim}); };
    const at::Tensor query = rotated(heads(kQuery), carry.at("cos"), carry.at("sin"));
    const at::Tensor key = rotated(heads(kKey), carry.at("cos"), carry.at("sin")), value = heads(kValue);
    const at::Tensor lengths = carry.at("lengths");
    std::vector<at::Tensor> outputs;
    int64_t begin = 0;
    for (int64_t sequence = 0; sequence < lengths.size(0); ++sequence) {
      const int64_t length = lengths[sequence].item<int64_t>();
      const auto part = [&](const at::Tensor& all) { return all.narrow(0, begin, length); };
      at::Tensor keys = part(key), values = part(value);
      if (KeyValueCache* cache = exec.cache()) std::tie(keys, values) = cache->extend(block.index, sequence, keys, values);
      outputs.push_back(attend(part(query), keys, values));
      begin += length;
    }
    return at::cat(outputs);
  }

  /// Causal attention of query [tokens, heads, d] over keys and values [earlier tokens + tokens, kv_heads, d].
  static at::Tensor attend(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values) {
    const auto batch = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
    const int64_t rows = query.size(0), columns = keys.size(0);
    const at::Tensor mask = at::ones({rows, columns}, query.options().dtype(at::kBool)).tril(columns - rows);
    const at::Tensor output = at::scaled_dot_product_attention(batch(query), batch(keys), batch(values), mask, 0.0, false,
                                                               std::nullopt, /*enable_gqa=*/query.size(1) != keys.size(1));
    return output.squeeze(0).transpose(0, 1).flatten(1);
  }

  Config config_;
};
}  // namespace

SLIM_ADAPTER_PLUGIN("my_adapter", MyAdapter, "A small decoder over bytes", "my_adapter")
