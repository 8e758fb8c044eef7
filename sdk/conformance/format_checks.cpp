// A format: what it writes must be what it announced, and what it reads back must be what it wrote.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "check.h"
#include "lab.h"
#include "plugin/guard.h"
#include "slim/quant.hpp"
#include "util/nearest.h"

namespace slim::conformance {
namespace {

constexpr at::ScalarType kModelDtype = at::kBFloat16;

struct SilentNotes final : Notes {
  void note(std::string_view, std::string_view, std::string_view) override {}
  void metric(std::string_view, std::string_view, double) override {}
};

/// One layer with a random weight, to be rounded.
class LayerBench final : public LayerContext {
 public:
  LayerBench(const Layer& layer, const Scheme& scheme, at::ScalarType scale_dtype, uint64_t seed)
      : layer_(layer), scheme_(scheme), scale_dtype_(scale_dtype), moments_(layer.in) {
    const at::Generator generator = at::detail::createCPUGenerator(seed);
    weight_ = at::randn({layer.out, layer.in}, generator).to(kModelDtype).to(at::kFloat);
    moments_.update(at::randn({64, layer.in}, generator));
  }
  const Layer& layer() const override { return layer_; }
  const Scheme& scheme() const override { return scheme_; }
  at::Tensor weight() const override { return weight_.clone(); }
  at::Tensor bias() const override { return {}; }
  at::ScalarType scale_dtype() const override { return scale_dtype_; }
  const Statistic* find(std::string_view id) const override {
    return id == ChannelMoments::kId ? &moments_ : nullptr;
  }
  double fused_abs_max() const override { return weight_.abs().max().item<double>(); }
  TensorMap& port_cache() override { return cache_; }
  uint64_t seed() const override { return 0; }
  Notes& notes() override { return notes_; }

 private:
  const Layer& layer_;
  const Scheme& scheme_;
  at::ScalarType scale_dtype_;
  at::Tensor weight_;
  ChannelMoments moments_;
  TensorMap cache_;
  SilentNotes notes_;
};

class MemoryReader final : public TensorReader {
 public:
  explicit MemoryReader(TensorMap tensors) : data_(std::move(tensors)) {
    for (const auto& [name, tensor] : data_)
      specs_[name] = {name, *from_scalar_type(tensor.scalar_type()), tensor.sizes().vec()};
  }
  const std::map<std::string, TensorSpec>& tensors() const override { return specs_; }
  Result<at::Tensor> read(std::string_view name) const override {
    const auto found = data_.find(name);
    if (found == data_.end()) return Status(Code::kNotFound, "no tensor " + std::string(name));
    return found->second.clone();
  }

 private:
  TensorMap data_;
  std::map<std::string, TensorSpec> specs_;
};

constexpr int64_t kFormatGroup = 64;  // channels that formats of every kind can hold

Layer bench_layer() {
  Layer layer;
  layer.name = "model.layers.0.self_attn.o_proj";
  layer.role = Role::kAttentionOutput;
  layer.weight.tensor = layer.name + ".weight";
  layer.out = 128;
  layer.in = 256;
  return layer;
}

/// A layer that went through the format.
struct Written {
  Layer layer = bench_layer();
  Scheme scheme;
  Solved solved;
  std::vector<TensorSpec> layout;
  TensorMap tensors;
  std::string config;
  ModelPlan plan;
};

enum class Groups : uint8_t { kInOrder, kScattered };

/// Another channel of every group in the place of each: the codes belong to no weight then, but decode all the same.
void scatter_groups(uint64_t seed, Quantized& quantized) {
  const int64_t in = quantized.codes.size(1);
  const at::Tensor order = at::randperm(in, at::detail::createCPUGenerator(seed));
  quantized.group_index = order.div(quantized.args.group_size, "floor").to(at::kInt);
}

Result<Written> write(const Format& format, const std::string& name, uint64_t seed,
                      Groups groups = Groups::kInOrder) {
  Written written;
  SLIM_ASSIGN(written.scheme, bench_scheme(name, kFormatGroup));
  SLIM_ASSIGN(written.layout, format.layout(written.layer, written.scheme, kModelDtype));
  LayerBench bench(written.layer, written.scheme, format.scale_dtype(written.scheme, kModelDtype), seed);
  SLIM_ASSIGN(written.solved, quant::round_to_nearest(bench));
  if (groups == Groups::kScattered) scatter_groups(seed, std::get<Quantized>(written.solved.weight));
  SLIM_ASSIGN(written.tensors, format.encode(written.layer, written.scheme, written.solved, kModelDtype));
  BlockPlan block;
  block.name = "model.layers.0";
  block.stage = "language";
  block.layers = {written.layer};
  written.plan.family = "llama";
  written.plan.blocks = {block};
  OutputModel model;
  model.plan = &written.plan;
  model.schemes = {{written.layer.name, written.scheme}};
  for (const TensorSpec& spec : written.layout) model.tensors[spec.name] = spec;
  model.dtype = kModelDtype;
  model.scattered_groups = groups == Groups::kScattered;
  SLIM_ASSIGN(written.config, format.quantization_config(model));
  if (!written.config.empty()) return written;
  SLIM_ASSIGN(const auto files,
              format.side_files(model));  // Ascend describes its tensors in a file beside config.json
  for (const auto& [name, text] : files) {
    if (name.starts_with("quant_model_description")) written.config = text;
  }
  return written;
}

/// Schemes of rounding that the format can hold.
std::vector<std::string> held_schemes(const Format& format) {
  std::vector<std::string> names;
  for (const std::string& name : scheme_names()) {
    const auto scheme = bench_scheme(name, kFormatGroup);
    const bool rounding = scheme.ok() && scheme->weight && !scheme->sparsity;
    if (rounding &&
        guarded("layout", [&] { return format.layout(bench_layer(), *scheme, kModelDtype); }).ok())
      names.push_back(name);
  }
  return names;
}

/// Runs a check for every scheme, and names the one that fails.
Result<Outcome> for_each_scheme(const Subject& subject, Status (*check)(const Format&, const Written&)) {
  PluginRegistry registry;
  SLIM_ASSIGN(const auto format, registry.format(subject.info.path));
  const std::vector<std::string> names = held_schemes(*format);
  std::vector<std::string> done, others;
  for (const std::string& name : names) {
    auto written = guarded(name, [&] { return write(*format, name, subject.seed); });
    if (!written.ok() && written.status().code() == Code::kUnsupported) {
      others.push_back(name);  // it needs more than rounding gives
      continue;
    }
    if (!written.ok()) return written.status();
    SLIM_TRY(guarded(name, [&] { return check(*format, *written); }));
    done.push_back(name);
  }
  if (done.empty())
    return skipped("it holds no scheme that plain rounding makes" +
                   (others.empty() ? "" : " (" + join(others) + ")"));
  return Outcome{false, join(done)};
}

Status check_layout(const Format&, const Written& written) {
  if (written.tensors.size() != written.layout.size()) {
    return failure("layout() announces " + std::to_string(written.layout.size()) +
                   " tensors, encode() gives " + std::to_string(written.tensors.size()));
  }
  for (const TensorSpec& spec : written.layout) {
    const auto found = written.tensors.find(spec.name);
    if (found == written.tensors.end()) return failure("encode() gives no " + spec.name);
    const at::Tensor& tensor = found->second;
    const bool equal =
        tensor.sizes() == at::IntArrayRef(spec.shape) && from_scalar_type(tensor.scalar_type()) == spec.dtype;
    if (!equal)
      return failure(spec.name + " is " + c10::toString(tensor.scalar_type()) + " " +
                     shape_string(tensor.sizes().vec()) + ", announced was " +
                     std::string(dtype_name(spec.dtype)) + " " + shape_string(spec.shape));
    if (!spec.name.starts_with(written.layer.name))
      return failure(spec.name + " does not begin with the layer's name");
  }
  return {};
}

Status check_round_trip(const Format& format, const Written& written) {
  const MemoryReader reader(written.tensors);
  SLIM_ASSIGN(const auto layers, format.stored_layers(reader, written.config));
  if (layers.size() != 1)
    return failure("one layer was written, stored_layers() finds " + std::to_string(layers.size()));
  const StoredLayer& layer = layers.front();
  if (layer.name != written.layer.name || layer.out != written.layer.out || layer.in != written.layer.in) {
    return failure("the layer came back as " + layer.name + " [" + std::to_string(layer.out) + ", " +
                   std::to_string(layer.in) + "]");
  }
  SLIM_ASSIGN(const Solved solved, format.decode(layer, reader));
  const at::Tensor before = dense(written.solved), after = dense(solved);
  if (before.sizes() != after.sizes())
    return failure("the weight came back with shape " + shape_string(after.sizes().vec()));
  // A format may store a product of scales in fp32 (Ascend's deq_scale of W8A8S): dividing it again may move the last bit.
  if (!same(after, before) && !at::allclose(after, before, 0x1p-22, 0)) {
    return failure("the weight that came back differs from what was written, by up to " +
                   std::to_string((after - before).abs().max().item<double>()));
  }
  return {};
}

Status check_recognises(const Format& format, const Written& written) {
  if (written.config.empty()) return {};  // known by its files
  if (!nlohmann::json::accept(written.config))
    return failure("quantization_config() is no JSON: " + written.config.substr(0, 80));
  if (!format.recognises(written.config, {}))
    return failure("it does not recognise its own quantization_config " + written.config.substr(0, 80));
  if (format.recognises("", {}) || format.recognises(R"({"quant_method": "no_such_method"})", {})) {
    return failure("it takes checkpoints of other formats for its own");
  }
  return {};
}

Status check_deterministic(const Format& format, const Written& written) {
  std::vector<TensorMap> results(2);
  std::vector<std::thread> threads;
  for (TensorMap& result : results) {
    threads.emplace_back([&] {
      auto tensors = guarded("encode", [&] {
        return format.encode(written.layer, written.scheme, written.solved, kModelDtype);
      });
      if (tensors.ok()) result = *std::move(tensors);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& [name, tensor] : written.tensors) {
    for (const TensorMap& result : results) {
      const auto found = result.find(name);
      if (found == result.end() || !same(found->second, tensor))
        return failure(name + " has other bits when encode() runs in two threads");
    }
  }
  return {};
}

/// stored_layers() and decode() of what is damaged: an error, no layer, or one of another shape, which its reader refuses. If the
/// damage can be `seen`, the layer may not come back as if nothing had happened.
Status read_damaged(const Format& format, const Written& written, TensorMap tensors, bool seen,
                    const std::string& damage) {
  const MemoryReader reader(std::move(tensors));
  bool whole = false;
  const Status status = guarded("damaged", [&]() -> Status {
    SLIM_ASSIGN(const auto layers, format.stored_layers(reader, written.config));
    for (const StoredLayer& layer : layers) {
      SLIM_TRY(format.decode(layer, reader).status());
      whole = whole || (layer.out == written.layer.out && layer.in == written.layer.in);
    }
    return {};
  });
  return seen && whole && status.ok() ? failure(damage + " is read as if nothing were wrong") : Status{};
}

Status check_damaged(const Format& format, const Written& written) {
  for (const auto& [name, tensor] : written.tensors) {
    TensorMap without = written.tensors, cut = written.tensors, noise = written.tensors;
    without.erase(name);
    if (!name.ends_with("_shape"))
      SLIM_TRY(read_damaged(format, written, std::move(without), written.tensors.size() > 1,
                            "a checkpoint without " + name));
    if (tensor.dim() > 0 && tensor.size(0) > 1) {
      cut[name] = tensor.narrow(0, 0, tensor.size(0) - 1).contiguous();
      SLIM_TRY(read_damaged(format, written, std::move(cut), true, name + " without its last row"));
    }
    noise[name] = at::empty_like(tensor);
    std::memset(noise[name].mutable_data_ptr(), 0xA7, noise[name].nbytes());
    SLIM_TRY(read_damaged(format, written, std::move(noise), false, name));
  }
  return {};
}

Result<Outcome> refuses(const Subject& subject) {
  PluginRegistry registry;
  SLIM_ASSIGN(const auto format, registry.format(subject.info.path));
  Layer layer = bench_layer();
  layer.in = 250;
  SLIM_ASSIGN(const Scheme scheme, scheme_from_name("w4a16", 64));
  const auto uneven = guarded("layout", [&] { return format->layout(layer, scheme, kModelDtype); });
  if (uneven.ok()) return failure("it lays out 250 input channels in groups of 64");
  Scheme empty;
  empty.name = "none";
  if (guarded("layout", [&] { return format->layout(bench_layer(), empty, kModelDtype); }).ok())
    return failure("it lays out a scheme that does nothing");
  return Outcome{false, uneven.status().message()};
}

/// What holds_scattered_groups() says, plans rely on: encode() and decode() must agree with it.
Result<Outcome> scattered(const Subject& subject) {
  PluginRegistry registry;
  SLIM_ASSIGN(const auto format, registry.format(subject.info.path));
  const bool held = format->holds_scattered_groups();
  std::vector<std::string> done;
  for (const std::string& name : held_schemes(*format)) {
    SLIM_ASSIGN(const Scheme scheme, bench_scheme(name, kFormatGroup));
    if (scheme.weight->granularity != Granularity::kGroup) continue;
    const auto written =
        guarded(name, [&] { return write(*format, name, subject.seed, Groups::kScattered); });
    if (!held && written.ok())
      return failure(name + ": encode() takes scattered groups, and holds_scattered_groups() is false");
    if (held) {
      SLIM_TRY(written.status());
      SLIM_TRY(guarded(name, [&] { return check_round_trip(*format, *written); }));
    }
    done.push_back(name);
  }
  if (done.empty()) return skipped("it holds no scheme with groups");
  return Outcome{false, (held ? "" : "refused: ") + join(done)};
}

Result<Outcome> layout(const Subject& subject) { return for_each_scheme(subject, &check_layout); }
Result<Outcome> round_trip(const Subject& subject) { return for_each_scheme(subject, &check_round_trip); }
Result<Outcome> recognises(const Subject& subject) { return for_each_scheme(subject, &check_recognises); }
Result<Outcome> deterministic(const Subject& subject) {
  return for_each_scheme(subject, &check_deterministic);
}
Result<Outcome> damaged(const Subject& subject) { return for_each_scheme(subject, &check_damaged); }

}  // namespace

std::vector<Check> format_checks() {
  return {{"format/layout", "encode() gives exactly the tensors that layout() announces", &layout},
          {"format/round-trip",
           "what was written comes back bit for bit, or but for the last bit of an fp32 scale", &round_trip},
          {"format/scattered-groups",
           "groups of channels that are no neighbours are stored or refused as holds_scattered_groups() says",
           &scattered},
          {"format/recognises", "its own checkpoints are recognised, others are not", &recognises},
          {"format/threads", "encode() gives the same bits from several threads", &deterministic},
          {"format/damaged", "missing, cut and overwritten tensors are errors, or harmless", &damaged},
          {"format/refuses", "what it cannot hold is refused before any weight is read", &refuses}};
}

}  // namespace slim::conformance
