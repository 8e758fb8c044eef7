#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "slim/export.hpp"

/// Numbers and foreign text as people read them.
namespace slim {

/// Writes a count of bytes in decimal units: "1.25 GB".
SLIM_API std::string bytes_text(int64_t bytes);

/// True for text that terminals and JSON can hold as it is.
SLIM_API bool is_utf8(std::string_view text);

/// Cuts text to about so many bytes, between two characters, with "..." where something is left out. Any bytes.
SLIM_API std::string cut_text(std::string_view text, size_t bytes);

/// Writes text for a terminal: bytes that are no UTF-8 and control characters, but for line ends and tabs, as "\\x1b". What data and names
/// hold cannot move the cursor or set titles.
SLIM_API std::string terminal_text(std::string_view text);

}  // namespace slim
