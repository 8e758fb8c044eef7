#include "plugin/scan.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/dll/runtime_symbol_info.hpp>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>

#include "plugin/compatibility.h"
#include "plugin/elf_metadata.h"

namespace slim {
namespace {

namespace fs = std::filesystem;

constexpr std::pair<slim_kind, const char*> kKinds[] = {{SLIM_ALGORITHM, "algorithm"},
                                                        {SLIM_ADAPTER, "adapter"},
                                                        {SLIM_BACKEND, "backend"},
                                                        {SLIM_FORMAT, "format"}};

Status io_error(const std::string& what) { return Status(Code::kIo, what + ": " + std::strerror(errno)); }

/// A file mapped for reading: of a plugin with debug information only the few pages that are looked at are read.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (data_) munmap(data_, size_);
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Status open(const std::string& path) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat info {};
    if (descriptor_ < 0 || fstat(descriptor_, &info) != 0) return io_error("cannot read it");
    if (!S_ISREG(info.st_mode)) return Status(Code::kInvalidArgument, "no regular file");
    mode_ = info.st_mode & 07777;
    if (info.st_size == 0) return {};
    size_ = static_cast<size_t>(info.st_size);
    void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (data == MAP_FAILED) return io_error("cannot map it");
    data_ = data;
    return {};
  }
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(data_), data_ ? size_ : 0};
  }
  unsigned mode() const { return mode_; }

 private:
  int descriptor_ = -1;
  void* data_ = nullptr;
  size_t size_ = 0;
  unsigned mode_ = 0;
};

/// A plugin runs with the user's rights: whoever may write it could run anything as the user.
Status check_not_world_writable(unsigned mode) {
  if (!(mode & S_IWOTH)) return {};
  char text[8];
  std::snprintf(text, sizeof text, "%04o", mode);
  return Status(Code::kInvalidArgument,
                std::string("refused: every user of this machine may change the file (mode ") + text +
                    "); chmod o-w it if you trust it");
}

/// Takes what the metadata says; what it must not lack is checked.
Status fill(const std::map<std::string, std::string>& metadata, PluginInfo& info) {
  const std::pair<const char*, std::string*> entries[] = {{"id", &info.id},
                                                          {"summary", &info.summary},
                                                          {"serves", &info.serves},
                                                          {"name", &info.name},
                                                          {"version", &info.version},
                                                          {"vendor", &info.vendor},
                                                          {"license", &info.license},
                                                          {"api", &info.api},
                                                          {"torch", &info.torch},
                                                          {"compiler", &info.compiler},
                                                          {"build_tag", &info.build_tag},
                                                          {"claims", &info.claims},
                                                          {"interface", &info.interface}};
  for (const auto& [key, value] : entries) {
    if (const auto found = metadata.find(key); found != metadata.end()) *value = found->second;
  }
  const auto kind_text = metadata.find("kind");
  const auto kind = kind_text == metadata.end() ? std::nullopt : kind_from_name(kind_text->second);
  if (!kind || !metadata.count("id") || info.id.empty()) {
    return Status(Code::kCorrupt, "broken plugin: its section slim_meta lacks a valid kind or id");
  }
  info.kind = *kind;
  if (const auto score = metadata.find("score"); score != metadata.end())
    std::from_chars(score->second.data(), score->second.data() + score->second.size(), info.score);
  return {};
}

/// A second LibTorch in a process registers everything twice, and its tensors are not ours. A name with a folder in it is loaded
/// even if a library of that name is there already.
Status check_one_torch(std::span<const std::byte> file) {
  constexpr std::string_view kHost[] = {"libtorch.so",    "libtorch_cpu.so",  "libtorch_global_deps.so",
                                        "libc10.so",      "libtorch_cuda.so", "libc10_cuda.so",
                                        "libtorch_npu.so"};
  SLIM_ASSIGN(const LibraryFacts facts, read_library_facts(file));
  for (const std::string& needed : facts.needed) {
    const std::string name = fs::path(needed).filename().string();
    if (!name.starts_with("libtorch") && !name.starts_with("libc10")) continue;
    const bool host =
        name == needed && std::find(std::begin(kHost), std::end(kHost), name) != std::end(kHost);
    if (host) continue;
    return Status(Code::kIncompatible, "refused: it would load a second copy of LibTorch (" + needed +
                                           "); link it with slim_add_plugin, against the LibTorch of slim");
  }
  return {};
}

Status read_into(const std::string& path, PluginInfo& info) {
  MappedFile file;
  SLIM_TRY(file.open(path));
  SLIM_ASSIGN(const auto metadata, read_plugin_metadata(file.bytes()));
  SLIM_TRY(fill(metadata, info));
  SLIM_TRY(check_not_world_writable(file.mode()));
  SLIM_ASSIGN(const AbiFacts facts, facts_of(metadata));
  SLIM_TRY(check_compatible(facts, host_facts()));
  return check_one_torch(file.bytes());
}

std::vector<std::string> plugin_files(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  fs::directory_iterator it(folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with("libslim_") && name.ends_with(".so")) files.push_back(it->path().string());
  }
  std::sort(files.begin(), files.end());  // directory order differs between machines
  return files;
}

std::string user_plugin_folder() {
  const char* data = std::getenv("XDG_DATA_HOME");
  if (data && *data == '/') return std::string(data) + "/slim/plugins";
  const char* home = std::getenv("HOME");
  return home && *home == '/' ? std::string(home) + "/.local/share/slim/plugins" : "";
}

std::vector<std::string> environment_folders() {
  std::vector<std::string> folders;
  const char* text = std::getenv("SLIM_PLUGIN_PATH");
  std::string_view rest = text ? text : "";
  while (!rest.empty()) {
    const size_t end = std::min(rest.find(':'), rest.size());
    folders.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return folders;
}

std::string core_plugin_folder() {
  boost::dll::fs::error_code error;
  const auto core = boost::dll::this_line_location(error);
  return error ? "" : (fs::path(core.string()).parent_path() / "slim" / "plugins").string();
}

}  // namespace

std::string kind_name(slim_kind kind) {
  for (const auto& [value, name] : kKinds) {
    if (value == kind) return name;
  }
  return "unknown";
}

std::optional<slim_kind> kind_from_name(std::string_view text) {
  for (const auto& [value, name] : kKinds) {
    if (text == name) return value;
  }
  return std::nullopt;
}

std::vector<std::string> plugin_search_path(const std::vector<std::string>& plugin_dirs) {
  std::vector<std::string> wanted = plugin_dirs;
  for (std::string& folder : environment_folders()) wanted.push_back(std::move(folder));
  wanted.push_back(user_plugin_folder());
  wanted.push_back(core_plugin_folder());
  std::vector<std::string> result;
  for (const std::string& folder : wanted) {
    if (folder.empty()) continue;  // an empty entry would mean the current directory
    std::error_code error;
    const fs::path canonical = fs::weakly_canonical(folder, error);
    const std::string path = error ? fs::absolute(folder).lexically_normal().string() : canonical.string();
    if (std::find(result.begin(), result.end(), path) == result.end()) result.push_back(path);
  }
  return result;
}

std::optional<std::pair<slim_kind, std::string>> parse_plugin_file_name(const std::string& path) {
  constexpr std::string_view kPrefix = "libslim_", kSuffix = ".so";
  const std::string name = fs::path(path).filename().string();
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  const std::string stem = name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  const size_t underscore = stem.find('_');
  if (underscore == std::string::npos || underscore + 1 == stem.size()) return std::nullopt;
  const auto kind = kind_from_name(stem.substr(0, underscore));
  if (!kind) return std::nullopt;
  return std::pair(*kind, stem.substr(underscore + 1));
}

PluginInfo read_plugin_info(const std::string& path) {
  PluginInfo info;
  info.path = path;
  if (const auto named = parse_plugin_file_name(path)) std::tie(info.kind, info.id) = *named;
  info.compatible = read_into(path, info).in(path);
  return info;
}

std::vector<PluginInfo> scan_plugins(const std::vector<std::string>& folders) {
  std::vector<PluginInfo> plugins;
  std::map<std::pair<slim_kind, std::string>, std::string> first;
  for (const std::string& folder : folders) {
    for (const std::string& path : plugin_files(folder)) {
      PluginInfo info = read_plugin_info(path);
      const auto [it, added] = first.emplace(std::pair(info.kind, info.id), path);
      if (!added) info.shadowed_by = it->second;
      plugins.push_back(std::move(info));
    }
  }
  return plugins;
}

}  // namespace slim
