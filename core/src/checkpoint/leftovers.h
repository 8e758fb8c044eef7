#pragma once
#include <string>

#include "slim/export.hpp"

/// Files and folders that are of no use if this process ends now. Whoever makes one names it here until it is finished, kept, or
/// deleted; a program that must end at once calls remove_leftovers(). Thread-safe.
namespace slim {

SLIM_API void add_leftover(const std::string& path);
SLIM_API void forget_leftover(const std::string& path);
SLIM_API void remove_leftovers();

}  // namespace slim
