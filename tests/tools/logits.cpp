// logits MODEL SAMPLES OUTPUT [DTYPE [ADAPTER]]: runs all samples through the native forward pass: in fp32 as one batch, in 16 bits each alone, for
// LibTorch's products of 16 bits round in other places where there are other numbers of rows.
// SAMPLES: a folder with config.json ({}) and model.safetensors, holding tensors "I.NAME" for sample I = 0, 1, ...
// ("0.input_ids" int64 [tokens], "0.pixel_values", "0.image_grid_thw", as the adapter's Processor makes them).
// OUTPUT: a folder whose model.safetensors holds "I.logits" fp32 [tokens, vocabulary].
#include <ATen/ATen.h>

#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include "report/notes.h"
#include "tensor_files.h"

using namespace slim;

namespace {

Result<std::vector<Sample>> read_samples(const std::string& folder) {
  SLIM_ASSIGN(const auto file, Checkpoint::open(folder));
  std::map<int, Sample> samples;
  for (const auto& [name, spec] : file->tensors()) {
    const size_t dot = name.find('.');
    const int index = std::atoi(name.substr(0, dot).c_str());
    SLIM_ASSIGN(samples[index].tensors[name.substr(dot + 1)], file->read(name));
    samples[index].origin = "sample " + name.substr(0, dot);
  }
  std::vector<Sample> list;
  for (auto& [index, sample] : samples) list.push_back(std::move(sample));
  return list;
}

Status run(const std::string& folder, const std::string& samples_folder, const std::string& output,
           const std::string& dtype_name, const std::string& adapter) {
  PluginRegistry registry;
  SLIM_ASSIGN(const Model model, Model::open(folder, adapter, registry));
  SLIM_ASSIGN(const std::vector<Sample> samples, read_samples(samples_folder));
  SLIM_ASSIGN(const at::ScalarType dtype, model.compute_dtype(dtype_name));
  RunNotes notes;
  ForwardPass pass(model, {.dtype = dtype}, /*cache_bytes=*/0, notes);
  const size_t together = dtype == at::kFloat ? std::max<size_t>(samples.size(), 1) : 1;
  std::vector<Carry> batches;
  for (size_t i = 0; i < samples.size(); i += together) {
    SLIM_ASSIGN(batches.emplace_back(), model.begin(std::span(samples).subspan(i, together), pass.exec()));
  }
  SLIM_TRY(pass.run(batches, "", nullptr, nullptr));

  TensorMap tensors;
  for (const Carry& batch : batches) {
    const at::Tensor lengths = batch.at("lengths");
    SLIM_ASSIGN(const at::Tensor logits, pass.logits(batch, at::arange(lengths.sum().item<int64_t>())));
    int64_t begin = 0;
    for (int64_t i = 0; i < lengths.size(0); ++i) {
      const int64_t length = lengths[i].item<int64_t>();
      tensors[std::to_string(tensors.size()) + ".logits"] = logits.narrow(0, begin, length);
      begin += length;
    }
  }
  return tools::write_tensors(output, tensors);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: logits MODEL SAMPLES OUTPUT [DTYPE [ADAPTER]]\n");
    return 2;
  }
  return tools::exit_code(
      run(argv[1], argv[2], argv[3], argc > 4 ? argv[4] : "auto", argc > 5 ? argv[5] : ""));
}
