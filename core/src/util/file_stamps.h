#pragma once
#include <filesystem>
#include <string>

#include "slim/export.hpp"

namespace slim {

/// Hashes name, size and time of the last change of a file, or of every file below a folder.
SLIM_API std::string file_stamps(const std::filesystem::path& path);

}  // namespace slim
