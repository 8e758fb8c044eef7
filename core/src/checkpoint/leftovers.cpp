#include "checkpoint/leftovers.h"

#include <filesystem>
#include <mutex>
#include <set>

namespace slim {
namespace {

struct Leftovers {
  std::mutex mutex;
  std::set<std::string> paths;
};

/// Never destroyed: it may be asked for while the program ends.
Leftovers& leftovers() {
  static auto* const all = new Leftovers();
  return *all;
}

}  // namespace

void add_leftover(const std::string& path) {
  const std::lock_guard lock(leftovers().mutex);
  leftovers().paths.insert(path);
}

void forget_leftover(const std::string& path) {
  const std::lock_guard lock(leftovers().mutex);
  leftovers().paths.erase(path);
}

void remove_leftovers() {
  const std::lock_guard lock(leftovers().mutex);
  std::error_code ignored;
  for (const std::string& path : leftovers().paths) std::filesystem::remove_all(path, ignored);
}

}  // namespace slim
