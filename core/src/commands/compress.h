#pragma once
#include <string>
#include <vector>

#include "commands/commands.h"

namespace slim {

struct CompressConfig {
  std::string input, output;
  int64_t ranks = 0;                         ///< of tensor parallelism
  std::string codec;                         ///< "slim", "cann", or empty: cann if there is a tool
  std::string cann_tool;                     ///< CANN's program; empty: $SLIM_CANN_COMPRESS
  std::vector<std::string> disabled_layers;  ///< names, globs, "re:": these stay uncompressed
  bool overwrite = false;
};

/// A W8A8S checkpoint as one folder per rank, `part{r}-of-{N}`, with losslessly compressed weights: W8A8SC by CANN's
/// tool, or W8A8S_SLIM by slim's own codec (docs/compressed-weights.md).
SLIM_API Result<Report> compress(const CompressConfig&, PluginRegistry&, Progress&);

/// The W8A8S checkpoint back from a W8A8S_SLIM one: the same tensors, bit by bit.
SLIM_API Result<Report> decompress(const std::string& input, const std::string& output, bool overwrite,
                                   Progress&);

}  // namespace slim
