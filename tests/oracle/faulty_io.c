/* Preloaded into slim by test_faults.py: from the FAULT_AFTER-th call on, FAULT_CALL fails with FAULT_ERRNO wherever the file's path
 * contains FAULT_PATH, as on a disk that is full or breaks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
  static atomic_int calls;
  const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH"), *after = getenv("FAULT_AFTER"), *number = getenv("FAULT_ERRNO");
  if (!wanted || !part || strcmp(wanted, call) != 0 || !strstr(path, part)) return 0;
  if (atomic_fetch_add(&calls, 1) < (after ? atoi(after) : 0)) return 0;
  errno = number ? atoi(number) : EIO;
  return 1;
}

static int fails_on(const char *call, int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = '\0';
  return fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) { return fails_on("write", fd) ? -1 : NEXT(pwrite)(fd, bytes, size, offset); }
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) { return fails_on("write", fd) ? -1 : NEXT(pwrite64)(fd, bytes, size, offset); }
ssize_t pread(int fd, void *bytes, size_t size, off_t offset) { return fails_on("read", fd) ? -1 : NEXT(pread)(fd, bytes, size, offset); }
ssize_t pread64(int fd, void *bytes, size_t size, off64_t offset) { return fails_on("read", fd) ? -1 : NEXT(pread64)(fd, bytes, size, offset); }
int fsync(int fd) { return fails_on("sync", fd) ? -1 : NEXT(fsync)(fd); }
int rename(const char *from, const char *to) { return fails("rename", from) ? -1 : NEXT(rename)(from, to); }
