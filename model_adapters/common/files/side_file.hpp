#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "slim/status.hpp"

namespace slim::model {

constexpr int64_t kMaxSideFile = int64_t{256} << 20;  ///< real ones: 35 MB (tokenizer.json), else under 1 MB

/// The whole text of a file beside the weights; links are followed. No memory is taken before its size is known. Errors, path first:
/// kNotFound where there is no plain file, kCorrupt over `most` bytes, kIo when it cannot be read.
Result<std::string> read_side_file(const std::filesystem::path& path, int64_t most = kMaxSideFile);

/// A JSON text of a checkpoint. Errors, `where` first: kCorrupt if it is no JSON, or nested deeper than 64 levels: what prints or copies
/// a value calls itself for each of them.
Result<nlohmann::json> parse_side_json(std::string_view text, std::string_view where);

}  // namespace slim::model
