#pragma once
#include <ATen/core/Tensor.h>

#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/writer.h"
#include "slim/algorithm.hpp"

/// What the tools give back to the tests that call them.
namespace slim::tools {

/// A folder with model.safetensors and `files`; one that exists is written anew.
inline Status write_tensors(const std::string& folder, const TensorMap& tensors,
                            const std::map<std::string, std::string>& files = {{"config.json", "{}"}}) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, value] : tensors)
    specs.push_back({name, *from_scalar_type(value.scalar_type()), value.sizes().vec()});
  WriterOptions options;
  options.folder = folder;
  options.overwrite = true;
  SLIM_ASSIGN(const auto writer, CheckpointWriter::create(options, specs));
  for (const auto& [name, value] : tensors) SLIM_TRY(writer->put(name, value.contiguous()));
  for (const auto& [name, text] : files) SLIM_TRY(writer->write_file(name, text));
  return writer->finish();
}

/// The exit code of a tool; an error goes to standard error.
inline int exit_code(const Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace slim::tools
