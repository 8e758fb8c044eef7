#include "common/models/decoder.hpp"

#include <ATen/ATen.h>

#include <charconv>
#include <cmath>

#include "common/layers/attention.hpp"

namespace slim::model {
namespace {
constexpr char kAttention[] = "attention";
constexpr char kMlp[] = "mlp";
}  // namespace

DecoderConfig read_decoder(const JsonConfig& config, const DecoderDefaults& defaults) {
  DecoderConfig result;
  result.hidden = config.integer("hidden_size", defaults.hidden);
  result.intermediate = config.integer("intermediate_size", defaults.intermediate);
  result.layers = config.integer("num_hidden_layers", defaults.layers);
  result.heads = std::max<int64_t>(1, config.integer("num_attention_heads", defaults.heads));
  result.kv_heads =
      config.integer("num_key_value_heads", defaults.kv_heads ? defaults.kv_heads : result.heads);
  result.head_dim =
      config.integer("head_dim", defaults.head_dim ? defaults.head_dim : result.hidden / result.heads);
  result.vocabulary = config.integer("vocab_size", defaults.vocabulary);
  result.epsilon = config.number("rms_norm_eps", defaults.epsilon);
  result.activation = config.text("hidden_act", "silu");
  result.qkv_bias = result.output_bias = config.boolean("attention_bias", false);
  result.rope = read_rope(config, defaults.theta);
  if (!config.status().ok()) return result;
  if (!(result.epsilon >= 0 && result.epsilon < 1)) config.fail("rms_norm_eps", "is no number from 0 to 1");
  if (result.heads % result.kv_heads != 0) {
    config.fail("num_key_value_heads", "is " + std::to_string(result.kv_heads) +
                                           ", which does not divide num_attention_heads " +
                                           std::to_string(result.heads));
  }
  if (result.head_dim < 2 || result.head_dim % 2 != 0) {
    config.fail("head_dim", "is " + std::to_string(result.head_dim) + ", expected an even number");
  }
  if (const auto known = activation(result.activation); !known.ok()) {
    config.fail("hidden_act", "is \"" + result.activation + "\", which slim does not know");
  }
  return result;
}

void read_windows(const JsonConfig& config, bool enabled, const std::function<bool(int64_t)>& slides,
                  DecoderConfig& decoder) {
  const bool typed = config.has("layer_types");
  const auto types = config.texts("layer_types", std::vector<std::string>{});
  if (!config.status().ok()) return;
  if (typed && static_cast<int64_t>(types.size()) < decoder.layers)
    return config.fail("layer_types", "names " + std::to_string(types.size()) +
                                          " layers, num_hidden_layers is " + std::to_string(decoder.layers));
  const int64_t window = enabled ? config.integer("sliding_window", 4096) : 0;
  decoder.windows.assign(static_cast<size_t>(decoder.layers), 0);
  for (int64_t layer = 0; layer < decoder.layers; ++layer) {
    const auto i = static_cast<size_t>(layer);
    if (typed && types[i] != "full_attention" && types[i] != "sliding_attention")
      return config.fail("layer_types",
                         "names \"" + types[i] + "\"; full_attention and sliding_attention are known");
    const bool sliding = typed ? types[i] == "sliding_attention" : enabled && slides(layer);
    if (sliding && window == 0)
      return config.fail("layer_types",
                         "has sliding_attention, but no window: use_sliding_window is false or "
                         "sliding_window is missing; set both, or make the layers full_attention");
    decoder.windows[i] = sliding ? window : 0;
  }
}

void find_names(const std::map<std::string, TensorSpec>& tensors, const std::vector<std::string>& prefixes,
                DecoderConfig& config) {
  config.prefix = stored_prefix(tensors, prefixes, "layers.0.input_layernorm.weight");
  const std::string head_prefix =
      stored_prefix(tensors, {"", "language_model.", "model.", "model.language_model."}, "lm_head.weight");
  config.head = head_prefix + "lm_head";
  const std::string head = config.head + ".weight";
  config.embedding = config.prefix + "embed_tokens.weight";
  if (config.tied && !tensors.contains(config.embedding) && tensors.contains(head)) config.embedding = head;
  config.head_copied = config.tied && config.embedding != head && tensors.contains(head);
  config.has_head = config.tied || tensors.contains(head);
}

Decoder::Decoder(DecoderConfig config) : config_(std::move(config)), rotary_(config_.rope, config_.head_dim) {
  const auto function = activation(config_.activation);
  if (function.ok()) activation_ = *function;
}

// ---- plan -------------------------------------------------------------------------------------------------

void Decoder::plan(PlanBuilder& plan) const {
  plan.global(config_.embedding, {config_.vocabulary, config_.hidden});
  for (int64_t i = 0; i < config_.layers && plan.ok(); ++i) {
    auto block = plan.block(config_.prefix + "layers." + std::to_string(i), "language");
    plan_attention(block);
    const std::string norm = block.plan().name + ".post_attention_layernorm";
    block.param(norm + ".weight", {config_.hidden});
    plan_mlp(block, i, norm);
  }
  auto head = plan.block(config_.head, "head");
  head.param(config_.prefix + "norm.weight", {config_.hidden});
  if (!config_.has_head) return;
  LinearSpec spec{config_.head, config_.vocabulary, config_.hidden, head.port("head_input", config_.hidden),
                  Role::kHead};
  // Where a tied head is stored a second time, engines and slim use the embedding.
  if (config_.head_copied) plan.leave_out(config_.head + ".weight", config_.embedding);
  if (config_.tied) {
    WeightRef shared;
    shared.tensor = config_.embedding;
    head.linear(spec, shared);
  } else {
    head.linear(spec);
  }
  head.plan().layers[0].tied = config_.tied;
  if (!config_.tied) head.norm_edge(config_.prefix + "norm", false, 0, {0}, -1);
}

void Decoder::plan_attention(BlockBuilder& block) const {
  const auto& c = config_;
  const std::string name = block.plan().name, attention = name + ".self_attn.";
  const int64_t query_features = c.heads * c.head_dim, key_features = c.kv_heads * c.head_dim;
  const auto region = block.region(kAttention);
  const auto input = block.port("attention_input", c.hidden);
  const auto q =
      block.linear({attention + "q_proj", query_features, c.hidden, input, Role::kQuery, c.qkv_bias});
  const auto k = block.linear({attention + "k_proj", key_features, c.hidden, input, Role::kKey, c.qkv_bias});
  const auto v =
      block.linear({attention + "v_proj", key_features, c.hidden, input, Role::kValue, c.qkv_bias});
  const auto output = block.port("attention_output_input", query_features);
  const auto o = block.linear(
      {attention + "o_proj", c.hidden, query_features, output, Role::kAttentionOutput, c.output_bias});
  block.param(name + ".input_layernorm.weight", {c.hidden});
  if (c.head_norm != DecoderConfig::HeadNorm::kNone) {
    block.param(attention + c.query_norm + ".weight", {c.head_dim});
    block.param(attention + c.key_norm + ".weight", {c.head_dim});
  }
  block.fuse("qkv", {q, k, v});
  block.norm_edge(name + ".input_layernorm", false, input, {q, k, v}, region);
  block.linear_edge(v, output, {o}, c.heads / c.kv_heads, c.head_dim);
  const auto cached_keys = block.port("cached_keys", key_features),
             cached_values = block.port("cached_values", key_features);
  block.plan().caches = {{name + ".self_attn", cached_keys, cached_values, v}};
}

void Decoder::plan_mlp(BlockBuilder& block, int64_t layer, const std::string& norm) const {
  const auto region = block.region(kMlp);
  const auto input = block.port("mlp_input", config_.hidden);
  const auto layers =
      plan_gated(block, block.plan().name + ".mlp.", config_.intermediate, input, "down_input");
  block.norm_edge(norm, false, input, {layers[0], layers[1]}, region);
}

std::vector<LayerId> Decoder::plan_gated(BlockBuilder& block, const std::string& prefix, int64_t intermediate,
                                         PortId input, const std::string& down_port, int32_t expert,
                                         const GatedWeights* weights) const {
  const auto& c = config_;
  const auto add = [&](const LinearSpec& spec, WeightRef GatedWeights::*slice) {
    return weights ? block.linear(spec, weights->*slice) : block.linear(spec);
  };
  const auto gate =
      add({prefix + "gate_proj", intermediate, c.hidden, input, Role::kGate, c.mlp_bias, expert},
          &GatedWeights::gate);
  const auto up = add({prefix + "up_proj", intermediate, c.hidden, input, Role::kUp, c.mlp_bias, expert},
                      &GatedWeights::up);
  const auto port = block.port(down_port, intermediate);
  const auto down = add({prefix + "down_proj", c.hidden, intermediate, port, Role::kDown, c.mlp_bias, expert},
                        &GatedWeights::down);
  block.fuse(expert < 0 ? "gate_up" : "gate_up of expert " + std::to_string(expert), {gate, up});
  block.linear_edge(up, port, {down});
  return {gate, up, down};
}

// ---- forward ----------------------------------------------------------------------------------------------

at::Tensor Decoder::embed(Exec& exec, const at::Tensor& ids) const {
  return exec.rows(config_.embedding, ids);
}

void Decoder::set_positions(Carry& carry, const at::Tensor& positions, Exec& exec) const {
  std::tie(carry["cos"], carry["sin"]) = rotary_.tables(positions, exec.dtype(), exec.device());
}

Carry Decoder::start(const at::Tensor& ids, const at::Tensor& lengths, Exec& exec) const {
  Carry carry{{"hidden", embed(exec, ids)}, {"lengths", lengths}, {"next_position", lengths}};
  set_positions(carry, text_positions(lengths), exec);
  return carry;
}

Carry Decoder::next(const Carry& previous, const at::Tensor& token_ids, Exec& exec) const {
  const auto position = previous.at("next_position");
  Carry carry{{"hidden", embed(exec, token_ids)},
              {"lengths", at::ones_like(position)},
              {"next_position", position + 1}};
  const bool multimodal = !config_.rope.sections.empty();
  set_positions(carry, multimodal ? position.unsqueeze(0).expand({3, position.size(0)}) : position, exec);
  return carry;
}

void Decoder::forward(const BlockPlan& block, Exec& exec, Carry& carry) const {
  if (block.stage == "head") return head(block, exec, carry);
  carry["hidden"] = add_regions(*this, block, exec, carry);
}

at::Tensor Decoder::region(const BlockPlan& block, RegionId id, Exec& exec, const Carry& carry,
                           const at::Tensor& x) const {
  if (id == region_id(block, kAttention))
    return attention(block, exec, carry, norm(block, ".input_layernorm", exec, x));
  return mlp(block, exec, norm(block, ".post_attention_layernorm", exec, x));
}

Sight Decoder::sight(const BlockPlan& block) const {
  if (config_.windows.empty()) return {};
  const std::string_view number = std::string_view(block.name).substr(block.name.rfind('.') + 1);
  size_t layer = 0;
  std::from_chars(number.data(), number.data() + number.size(), layer);
  return {.causal = true, .window = config_.windows.at(layer)};
}

at::Tensor Decoder::norm(const BlockPlan& block, const char* name, Exec& exec, const at::Tensor& x) const {
  return rms_norm(x, exec.param(block.name + name + ".weight"), config_.epsilon);
}

at::Tensor Decoder::attention(const BlockPlan& block, Exec& exec, const Carry& carry,
                              const at::Tensor& x) const {
  const auto& c = config_;
  using HeadNorm = DecoderConfig::HeadNorm;
  const auto project = [&](const char* layer) {
    return exec.linear(layer_id(block, block.name + ".self_attn." + layer), x)
        .unflatten(-1, {-1, c.head_dim});
  };
  const auto& cos = carry.at("cos");
  const auto& sin = carry.at("sin");
  const auto place = [&](at::Tensor heads, const std::string& norm_name) {
    const auto normed = [&](const at::Tensor& y) {
      return rms_norm(y, exec.param(block.name + ".self_attn." + norm_name + ".weight"), c.epsilon);
    };
    if (c.head_norm == HeadNorm::kBeforeRotary) heads = normed(heads);
    heads = apply_rotary(heads, cos, sin);
    return c.head_norm == HeadNorm::kAfterRotary ? normed(heads) : heads;
  };
  const auto query = place(project("q_proj"), c.query_norm);
  const auto key = place(project("k_proj"), c.key_norm);
  const auto value = project("v_proj");
  const CacheSite& cached = block.caches.front();
  exec.tap(cached.key, key.flatten(1));
  exec.tap(cached.value, value.flatten(1));
  const auto mixed =
      attend(query, key, value, sequence_lengths(carry), 1.0 / std::sqrt(static_cast<double>(c.head_dim)),
             sight(block), {exec.cache(), block.index});
  return exec.linear(layer_id(block, block.name + ".self_attn.o_proj"), mixed);
}

at::Tensor Decoder::mlp(const BlockPlan& block, Exec& exec, const at::Tensor& x) const {
  return gated(block, block.name + ".mlp.", exec, x);
}

at::Tensor Decoder::gated(const BlockPlan& block, const std::string& prefix, Exec& exec,
                          const at::Tensor& x) const {
  const at::Tensor wide = activation_(exec.linear(layer_id(block, prefix + "gate_proj"), x));
  wide.mul_(exec.linear(layer_id(block, prefix + "up_proj"), x));  // no third tensor of this width
  return exec.linear(layer_id(block, prefix + "down_proj"), wide);
}

void Decoder::head(const BlockPlan& block, Exec& exec, Carry& carry) const {
  if (!config_.has_head) {
    throw ExecError(Status(Code::kUnsupported,
                           "the model has no output layer (it embeds, ranks or rewards): it gives no "
                           "probabilities of tokens, and can be quantized but not evaluated"));
  }
  auto hidden = carry.at("hidden");
  if (const auto rows = carry.find("logit_rows"); rows != carry.end()) {
    hidden = hidden.index_select(0, rows->second.to(hidden.device()));
  }
  hidden = rms_norm(hidden, exec.param(config_.prefix + "norm.weight"), config_.epsilon);
  carry["logits"] = exec.linear(layer_id(block, config_.head), hidden).to(at::kFloat);
}

at::Tensor text_positions(const at::Tensor& lengths) {
  const auto counts = lengths.to(at::kCPU);
  std::vector<at::Tensor> parts{at::empty({0}, at::kLong)};
  for (int64_t i = 0; i < counts.size(0); ++i)
    parts.push_back(at::arange(counts[i].item<int64_t>(), at::kLong));
  return at::cat(parts);
}

}  // namespace slim::model
