// encode MODEL DATA OUTPUT [MAX_TOKENS]: what the adapter's Processor makes of the documents of a data set.
// OUTPUT: a folder whose model.safetensors holds "I.NAME" for document I, as `logits` takes them. Prints a
// line per document: text tokens, image tokens, downscaled.
#include <ATen/ATen.h>

#include <cstdio>

#include "data/dataset.h"
#include "model/model.h"
#include "tensor_files.h"

using namespace slim;

namespace {

Status run(const std::string& folder, const std::string& data, const std::string& output,
           int64_t max_tokens) {
  PluginRegistry registry;
  SLIM_ASSIGN(const Model model, Model::open(folder, "", registry));
  SLIM_ASSIGN(const auto processor, model.adapter->processor(folder));
  SLIM_ASSIGN(const Dataset dataset, read_dataset(data, {}));
  TensorMap tensors;
  for (size_t i = 0; i < dataset.documents.size(); ++i) {
    EncodeOptions options;
    options.max_tokens = max_tokens;
    SLIM_ASSIGN(const Sample sample, processor->encode(dataset.documents[i], options));
    std::printf("%ld %ld %d\n", static_cast<long>(sample.text_tokens), static_cast<long>(sample.image_tokens),
                sample.downscaled);
    for (const auto& [name, value] : sample.tensors) tensors[std::to_string(i) + "." + name] = value;
  }
  for (const int64_t stop : processor->stop_tokens()) std::printf("stop %ld\n", static_cast<long>(stop));
  return tools::write_tensors(output, tensors);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: encode MODEL DATA OUTPUT [MAX_TOKENS]\n");
    return 2;
  }
  return tools::exit_code(run(argv[1], argv[2], argv[3], argc > 4 ? std::atoll(argv[4]) : 0));
}
