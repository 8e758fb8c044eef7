// Lossless compression of W8A8S checkpoints, and the way back.
#include <ATen/Parallel.h>

#include "cli.h"
#include "commands/compress.h"
#include "output.h"

namespace slim::cli {
namespace {

std::vector<Flag> compress_flags() {
  return {{"tp", "N", "devices that share the model (tensor parallelism)", ""},
          {"output", "DIR", "the folder to write", ""},
          {"codec", "NAME", "slim, or cann: by CANN's own program (default: cann if there is one)", ""},
          {"cann-tool", "FILE", "CANN's compression program (default: $SLIM_CANN_COMPRESS)", ""},
          {"disable-layers", "PATTERN", "layers to leave uncompressed: a name, glob or re:... (repeatable)",
           "", true},
          {"decompress", "", "DIR is a compressed folder: write the W8A8S checkpoint back", ""},
          {"overwrite", "", "replace the output folder", ""},
          {"threads", "N", "CPU threads", ""}};
}

Status refuse_with_decompress(const Arguments& arguments) {
  for (const char* flag : {"tp", "codec", "cann-tool", "disable-layers"}) {
    if (arguments.has(flag))
      return {Code::kInvalidArgument,
              std::string("--") + flag + " says how to compress; leave it out with --decompress"};
  }
  return {};
}

Result<CompressConfig> read_compress(const Arguments& arguments) {
  CompressConfig config;
  SLIM_ASSIGN(config.input, only_positional(arguments, "the checkpoint's folder"));
  config.output = arguments.text("output");
  if (config.output.empty())
    return Status(Code::kInvalidArgument, "--output is missing: the folder to write");
  if (arguments.has("decompress")) SLIM_TRY(refuse_with_decompress(arguments));
  SLIM_ASSIGN(config.ranks, arguments.integer("tp", config.ranks, 1));
  config.codec = arguments.text("codec");
  config.cann_tool = arguments.text("cann-tool");
  config.disabled_layers = arguments.all("disable-layers");
  config.overwrite = arguments.has("overwrite");
  SLIM_ASSIGN(const int64_t threads, arguments.integer("threads", 0, 0));
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  return config;
}

int run_compress(const Arguments& arguments) {
  const auto config = read_compress(arguments);
  if (!config.ok()) return fail(config.status());
  return run_reported(arguments, [&](PluginRegistry& registry, Progress& progress) {
    return arguments.has("decompress")
               ? decompress(config->input, config->output, config->overwrite, progress)
               : compress(*config, registry, progress);
  });
}

}  // namespace

Command compress_command() {
  return {"compress", "compress DIR --tp N --output DIR | compress --decompress DIR --output DIR",
          "losslessly compress a W8A8S checkpoint, one folder per device; or unpack it",
          compress_flags() + common_flags(), &run_compress};
}

}  // namespace slim::cli
