#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace slim {
namespace {
// Linux transfers at most this much in one call; a multiple of every page size.
constexpr size_t kMaxTransfer = size_t{1} << 30;
constexpr unsigned kAndWait =
    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
constexpr int64_t kSyncedPiece = int64_t{32} << 20;
}  // namespace

Status system_error(const std::string& path, std::string_view what, int error) {
  return Status(error == ENOENT ? Code::kNotFound : Code::kIo,
                path + ": cannot " + std::string(what) + ": " + std::strerror(error));
}

Result<File> File::open(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (fd < 0) return system_error(path, "open", errno);
  return File(path, fd);
}

Result<File> File::open_read(const std::string& path) {
  // Without O_NONBLOCK, opening a FIFO of this name would wait for ever.
  SLIM_ASSIGN(File file, open(path, O_RDONLY | O_NONBLOCK));
  struct stat info {};
  if (::fstat(file.fd_, &info) != 0) return system_error(path, "stat", errno);
  if (!S_ISREG(info.st_mode)) return Status(Code::kIo, path + ": not a regular file");
  return file;
}

Result<File> File::create(const std::string& path) { return open(path, O_RDWR | O_CREAT | O_TRUNC); }

Result<File> File::open_write(const std::string& path) { return open(path, O_RDWR | O_NONBLOCK); }

Result<File> File::open_folder(const std::string& path) { return open(path, O_RDONLY | O_DIRECTORY); }

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

Result<int64_t> File::size() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) return system_error(path_, "stat", errno);
  return static_cast<int64_t>(info.st_size);
}

Status File::read_at(int64_t offset, std::span<std::byte> into) const {
  const size_t wanted = into.size();
  while (!into.empty()) {
    const ssize_t n = ::pread(fd_, into.data(), std::min(into.size(), kMaxTransfer), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return system_error(
          path_, "read " + std::to_string(into.size()) + " bytes at " + std::to_string(offset), errno);
    if (n == 0) {
      return Status(Code::kCorrupt,
                    path_ + ": ends at byte " + std::to_string(offset) + ", " + std::to_string(into.size()) +
                        " of " + std::to_string(wanted) +
                        " bytes are missing: the file is truncated or was changed while in use");
    }
    into = into.subspan(static_cast<size_t>(n));
    offset += n;
  }
  return {};
}

Status File::write_at(int64_t offset, std::span<const std::byte> from) const {
  while (!from.empty()) {
    const ssize_t n = ::pwrite(fd_, from.data(), std::min(from.size(), kMaxTransfer), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return system_error(
          path_, "write " + std::to_string(from.size()) + " bytes at " + std::to_string(offset), errno);
    from = from.subspan(static_cast<size_t>(n));
    offset += n;
  }
  return {};
}

// fsync() does not listen to signals, and a slow disk may take long for all that is written by then: it comes
// last, after pieces between which the process can be ended.
Status File::sync() const {
  SLIM_ASSIGN(const int64_t bytes, size());
  for (int64_t begin = 0; begin < bytes && bytes > kSyncedPiece; begin += kSyncedPiece) {
    ::sync_file_range(fd_, begin + kSyncedPiece, kSyncedPiece, SYNC_FILE_RANGE_WRITE);  // the disk stays busy
    const bool done = ::sync_file_range(fd_, begin, kSyncedPiece, kAndWait) == 0;
    // An error of writing is told once. Others are those of file systems that have no such call.
    if (!done && (errno == EIO || errno == ENOSPC || errno == EDQUOT))
      return system_error(path_, "write to the disk", errno);
  }
  if (::fsync(fd_) != 0) return system_error(path_, "write to the disk", errno);
  return {};
}

bool File::lock() const {
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) return errno != EWOULDBLOCK;
  struct stat mine {};
  struct stat named {};  // between opening and locking, the owner may have moved or deleted it
  return ::fstat(fd_, &mine) == 0 && ::stat(path_.c_str(), &named) == 0 && mine.st_dev == named.st_dev &&
         mine.st_ino == named.st_ino;
}

Status sync_folder(const std::string& folder) {
  SLIM_ASSIGN(const File opened, File::open_folder(folder));
  return opened.sync();
}

Result<std::string> read_text(const std::string& path, int64_t limit) {
  SLIM_ASSIGN(const File file, File::open_read(path));
  SLIM_ASSIGN(const int64_t size, file.size());
  if (size > limit) {
    return Status(Code::kCorrupt, path + ": has " + bytes_string(size) + ", at most " + bytes_string(limit) +
                                      " are expected");
  }
  std::string text(static_cast<size_t>(size), '\0');
  SLIM_TRY(file.read_at(0, std::as_writable_bytes(std::span(text))));
  return text;
}

std::string bytes_string(int64_t bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  std::string text = std::to_string(bytes) + " bytes";
  if (bytes < 1024) return text;
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024; ++unit) value /= 1024;
  std::array<char, 32> short_form{};
  std::snprintf(short_form.data(), short_form.size(), " (%.1f %s)", value, kUnits[unit]);
  return text + short_form.data();
}

}  // namespace slim
