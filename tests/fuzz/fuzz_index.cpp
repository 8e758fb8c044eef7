#include <filesystem>
#include <fstream>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "input.h"

using namespace slim;
namespace fs = std::filesystem;

namespace {

void write(const fs::path& path, std::string_view text) { std::ofstream(path, std::ios::binary) << text; }

/// A checkpoint of two shards; outside of it a third, which no index may reach.
class Folder {
 public:
  Folder() : outer_(fs::temp_directory_path() / ("slim-fuzz-index-" + std::to_string(::getpid()))) {
    fs::create_directories(path());
    write(path() / "config.json", "{}");
    const auto shard = [](const char* name) {
      return safetensors_header({{name, Dtype::kF32, {1}}}) + std::string(4, '\0');
    };
    write(path() / "a.safetensors", shard("a"));
    write(path() / "b.safetensors", shard("b"));
    write(outer_ / "outside.safetensors", shard("outside"));
  }
  ~Folder() { fs::remove_all(outer_); }
  fs::path path() const { return outer_ / "checkpoint"; }

 private:
  fs::path outer_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  write(folder.path() / "model.safetensors.index.json", fuzz::text_of(data, size));
  const auto checkpoint = Checkpoint::open(folder.path().string());
  if (!checkpoint.ok()) return 0;
  for (const auto& [name, spec] : (*checkpoint)->tensors()) {
    FUZZ_REQUIRE(name == "a" || name == "b");
    FUZZ_REQUIRE((*checkpoint)->read(name).ok());
  }
  return 0;
}
