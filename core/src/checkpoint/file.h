#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "slim/status.hpp"

/// File descriptors whose errors are values. Every message names the path, what failed and the system's
/// reason.
namespace slim {

/// Owns a file descriptor. Positional reads and writes may be called from several threads.
class File {
 public:
  static Result<File> open_read(const std::string& path);
  /// New and empty; an existing file of this name is truncated. Readable too.
  static Result<File> create(const std::string& path);
  /// One that exists, to be changed.
  static Result<File> open_write(const std::string& path);
  /// A folder, for sync() and locks.
  static Result<File> open_folder(const std::string& path);

  File(File&& other) noexcept : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
  File& operator=(File&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~File();

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  Result<int64_t> size() const;
  /// Exactly `into.size()` bytes at `offset`; fewer in the file is kCorrupt.
  Status read_at(int64_t offset, std::span<std::byte> into) const;
  Status write_at(int64_t offset, std::span<const std::byte> from) const;
  /// Returns when the contents are on the disk.
  Status sync() const;
  /// Takes the lock of this file or folder, which ends with the process, however that ends. False: another process
  /// has it, or the path names another file by now. A file system without locks is no reason to refuse.
  bool lock() const;

 private:
  File(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  static Result<File> open(const std::string& path, int flags);
  std::string path_;
  int fd_;
};

/// kIo (kNotFound for ENOENT): "PATH: cannot WHAT: reason of errno".
Status system_error(const std::string& path, std::string_view what, int error);

/// Returns when what a folder lists is on the disk.
Status sync_folder(const std::string& folder);

/// The whole of a text file of at most `limit` bytes; a longer one is kCorrupt.
Result<std::string> read_text(const std::string& path, int64_t limit);

/// "1234567 bytes (1.2 MiB)"
std::string bytes_string(int64_t bytes);

}  // namespace slim
