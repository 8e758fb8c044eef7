#include "util/file_stamps.h"

#include <set>

#include "util/hash.h"

namespace slim {

namespace fs = std::filesystem;

std::string file_stamps(const fs::path& path) {
  std::error_code error;
  std::set<std::string> stamps;
  const auto add = [&](const fs::path& file) {
    const auto size = fs::file_size(file, error);
    const auto time = fs::last_write_time(file, error).time_since_epoch().count();
    stamps.insert(file.lexically_relative(path.parent_path()).string() + " " + std::to_string(size) + " " +
                  std::to_string(time));
  };
  if (!fs::is_directory(path, error))
    add(path);
  else
    for (const auto& entry : fs::recursive_directory_iterator(path, error)) {
      if (entry.is_regular_file(error)) add(entry.path());
    }
  uint64_t hash = kHashStart;
  for (const std::string& stamp : stamps) hash = hash_text(stamp + "\n", hash);
  return hash_digits(hash);
}

}  // namespace slim
