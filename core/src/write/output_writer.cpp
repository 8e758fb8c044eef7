#include "write/output_writer.h"

#include "checkpoint/cast.h"

#include <ATen/ATen.h>

#include "plugin/guard.h"
#include "slim/phase.hpp"
#include "util/device_moves.h"
#include "write/output_json.h"

namespace slim {
namespace {

/// What a result keeps in memory until it is written.
int64_t bytes_of(const Solved& solved) {
  std::vector<at::Tensor> tensors = {solved.bias, solved.input_scale, solved.input_zero};
  if (const auto* quantized = std::get_if<Quantized>(&solved.weight)) {
    tensors.insert(tensors.end(),
                   {quantized->codes, quantized->scale, quantized->zero, quantized->group_index});
  } else {
    tensors.push_back(std::get<Dense>(solved.weight).weight);
  }
  for (const auto& [name, tensor] : solved.extra) tensors.push_back(tensor);
  size_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += tensor.defined() ? tensor.nbytes() : 0;
  return static_cast<int64_t>(bytes);
}

}  // namespace

Status OutputWriter::create(bool resume) {
  for (const TensorSpec& spec : output_.plan.outputs) dtypes_[spec.name] = spec.dtype;
  const RunConfig& config = output_.config;
  WriterOptions options;
  options.folder = config.output;
  options.max_shard_size = config.max_shard_size;
  options.stem = output_.recipe.format->weights_stem(output_.recipe.scheme);
  options.overwrite = config.overwrite;
  options.inputs = {config.model};
  options.kept = {config.calib, config.statistics, config.save_statistics};
  options.checksums = true;
  options.resume = resume;
  SLIM_ASSIGN(checkpoint_, CheckpointWriter::create(options, output_.plan.outputs));
  return {};
}

Status OutputWriter::adopt(const std::map<std::string, uint64_t>& tensors) {
  for (const auto& [name, checksum] : tensors) written_.insert(name);
  return checkpoint_->adopt(tensors);
}

void OutputWriter::discard() {
  if (checkpoint_) checkpoint_->keep_partial(false);
}

Status OutputWriter::write_layer(const Layer& layer, const Scheme& scheme, Solved solved) {
  const int64_t bytes = bytes_of(solved);
  return jobs_.submit(bytes, [this, &layer, &scheme, solved = std::move(solved)]() -> Status {
    const PhaseTimer timer(Phase::kWriting);
    SLIM_ASSIGN(const TensorMap tensors, guarded(layer.name, [&] {
                  const PhaseTimer encoding(Phase::kEncoding);
                  return output_.recipe.format->encode(layer, scheme, solved, output_.plan.dtype);
                }));
    for (const auto& [name, tensor] : tensors) SLIM_TRY(checkpoint_->put(name, tensor));
    return {};
  });
}

Status OutputWriter::write_changed(BlockState& state) {
  const BlockPlan& block = *state.plan;
  std::map<std::string, at::Tensor> assembled;  // float tensors that several layers are slices of
  for (const Layer& layer : block.layers) {
    const LayerDecision& decision = output_.plan.layers[block.index][layer.id];
    at::Tensor& weight = state.weights.weight[layer.id];
    if (state.changed_tensors.contains(layer.bias))
      SLIM_TRY(write_tensor(layer.bias, state.weights.bias[layer.id]));
    if (decision.scheme) continue;
    const bool changed = state.changed_layers.contains(layer.id);
    if (!decision.outputs.empty()) {
      const TensorSpec& spec = decision.outputs.front();
      SLIM_TRY(write_tensor(spec.name, weight));
    } else if (changed) {
      at::Tensor& whole = assembled[layer.weight.tensor];
      if (!whole.defined()) {
        SLIM_ASSIGN(whole, model_.weights->tensor(layer.weight.tensor));
      }
      at::Tensor target = layer.weight.index ? whole.select(0, *layer.weight.index) : whole;
      if (layer.weight.transposed) target = target.t();
      target.narrow(0, layer.weight.row_begin, layer.out).copy_(weight);
    }
    if (changed) weight = in_model_dtype(weight);
  }
  for (const auto& [name, tensor] : assembled) SLIM_TRY(write_tensor(name, tensor));
  for (const std::string& name : block.params) {
    if (state.changed_tensors.contains(name)) SLIM_TRY(write_tensor(name, state.weights.params.at(name)));
  }
  return {};
}

at::Tensor OutputWriter::in_model_dtype(const at::Tensor& weight) const {
  const at::ScalarType dtype = model_.weights->dtype();
  const auto there =
      guarded("moving between host and device", [&]() -> Result<at::Tensor> { return weight.to(dtype); });
  return there.ok() ? *there : weight.to(at::kCPU, dtype);
}

Status OutputWriter::write_tensor(const std::string& name, const at::Tensor& made) {
  written_.insert(name);
  const at::Tensor tensor = moved(made, at::kCPU);
  const Dtype announced = announced_dtype(name);
  return jobs_.submit(static_cast<int64_t>(tensor.nbytes()), [this, name, tensor, announced]() -> Status {
    const PhaseTimer timer(Phase::kWriting);
    SLIM_ASSIGN(const at::Tensor cast, cast_checked(name, tensor, announced));
    return checkpoint_->put(name, cast);
  });
}

Status OutputWriter::copy_tensor(const std::string& name) {
  if (output_.plan.replaced.contains(name) || !written_.insert(name).second) return {};
  return jobs_.submit(0, [this, name]() -> Status {
    const PhaseTimer timer(Phase::kWriting);
    const Checkpoint& input = model_.weights->checkpoint();
    if (!model_.weights->decodes(name)) return checkpoint_->copy(name, input, name, announced_dtype(name));
    SLIM_ASSIGN(const at::Tensor decoded, model_.weights->tensor(name));
    SLIM_ASSIGN(const at::Tensor cast, cast_checked(name, decoded, announced_dtype(name)));
    return checkpoint_->put(name, cast);
  });
}

Status OutputWriter::copy_block(const BlockPlan& block) {
  for (const std::string& name : block.params) SLIM_TRY(copy_tensor(name));
  for (const Layer& layer : block.layers) {
    if (!layer.tied) SLIM_TRY(copy_tensor(layer.weight.tensor));
    if (!layer.bias.empty()) SLIM_TRY(copy_tensor(layer.bias));
  }
  return {};
}

Status OutputWriter::finish(bool scattered_groups) {
  for (const std::string& name : model_.plan.globals) SLIM_TRY(copy_tensor(name));
  for (const std::string& name : model_.plan.beside) SLIM_TRY(copy_tensor(name));
  SLIM_TRY(jobs_.drain());
  SLIM_TRY(write_side_files(scattered_groups));
  return checkpoint_->finish();
}

Status OutputWriter::write_side_files(bool scattered_groups) {
  OutputModel output = describe_output(facts_of(model_), output_.plan);
  output.scattered_groups = scattered_groups;
  const auto dtype = output_.plan.cast ? std::optional(output_.plan.dtype) : std::nullopt;
  const Format& format = *output_.recipe.format;
  const Checkpoint& input = model_.weights->checkpoint();
  SLIM_ASSIGN(const std::string config, output_config_json(input.config_json(), format, output, dtype));
  SLIM_ASSIGN(const auto made, format.side_files(output));
  SLIM_TRY(checkpoint_->write_file("config.json", config));
  std::vector<std::string> files = input.side_files();
  if (output_.config.allow_outside)
    files.insert(files.end(), input.outside_links().begin(), input.outside_links().end());
  for (const std::string& name : files) {
    if (name != "config.json" && !made.contains(name) && !model_.weights->describes_quantization(name))
      SLIM_TRY(checkpoint_->copy_file(name, input.folder() + "/" + name));
  }
  for (const auto& [name, text] : made) SLIM_TRY(checkpoint_->write_file(name, text));
  return {};
}

}  // namespace slim
