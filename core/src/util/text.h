#pragma once
#include <cstdint>
#include <string>

#include "slim/export.hpp"

/// Numbers as people read them.
namespace slim {

/// Writes a count of bytes in decimal units: "1.25 GB".
SLIM_API std::string bytes_text(int64_t bytes);

}  // namespace slim
