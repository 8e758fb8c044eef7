#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"

/// Checksums that an output carries, so that `slim verify` finds bytes that were changed after it was written.
namespace slim {

inline constexpr const char* kChecksumFile = "slim_checksums.json";

struct Checksums {
  std::map<std::string, uint64_t>
      files;  ///< by name in the folder; of a *.safetensors file: its header alone
  std::map<std::string, uint64_t> tensors;  ///< of the stored bytes, by name
};

/// The text of kChecksumFile.
std::string checksums_text(const Checksums&);
/// nullopt where the folder has no such file; kCorrupt if it is not one.
SLIM_API Result<std::optional<Checksums>> read_checksums(const std::string& folder);
/// One line for every file that is missing or whose bytes are others.
SLIM_API Result<std::vector<std::string>> check_files(const Checksums&, const std::string& folder);
SLIM_API Result<uint64_t> tensor_checksum(const Checkpoint&, const std::string& name);
/// Of a part of a file, read in pieces.
Result<uint64_t> hash_file(const File&, int64_t offset, int64_t bytes);
/// Of a whole file.
Result<uint64_t> hash_file(const std::string& path);

}  // namespace slim
