/* Preloaded into slim by tests. Calls on files whose path contains FAULT_PATH are written to FAULT_LOG, a line each, and of those named
 * FAULT_CALL (or any) all after the first FAULT_AFTER fail with the number FAULT_ERRNO, as on a disk that is full or breaks; with
 * FAULT_ERRNO=kill the process dies in place of the call, with FAULT_ERRNO=torn in the middle of it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
enum { LINE = 8192 };

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static int is_set(const char *name, const char *value) {
  const char *found = getenv(name);
  return found && strcmp(found, value) == 0;
}

/* What is to become of a call: 0, it is made; -1, it fails; 1, half of it is made. */
static int fate(const char *call, const char *path) {
  static atomic_int calls;
  const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH"), *after = getenv("FAULT_AFTER"), *number = getenv("FAULT_ERRNO");
  if (!wanted || !part || !strstr(path, part) || (strcmp(wanted, call) != 0 && (strcmp(wanted, "any") != 0 || strcmp(call, "read") == 0))) return 0;
  if (atomic_fetch_add(&calls, 1) < (after ? atoi(after) : 0)) return 0;
  if (is_set("FAULT_ERRNO", "torn") && strcmp(call, "write") == 0) return 1;
  if (is_set("FAULT_ERRNO", "torn") || is_set("FAULT_ERRNO", "kill")) die();
  errno = number ? atoi(number) : EIO;
  return -1;
}

/* "CALL<tab>PATH<tab>..." after the call, or before it where it makes something go. */
static void note(const char *call, const char *path, const char *more) {
  static atomic_int file = -1;
  const char *log = getenv("FAULT_LOG"), *part = getenv("FAULT_PATH");
  if (!log || !part || !strstr(path, part)) return;
  const int before = errno;
  if (file < 0) file = NEXT(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  char line[LINE];
  const int size = snprintf(line, sizeof line, "%s\t%s\t%s\n", call, path, more);
  if (write(file, line, size < LINE ? (size_t)size : LINE - 1) < 0) die();
  errno = before;
}

static const char *path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, LINE / 2 - 1);
  path[length < 0 ? 0 : length] = '\0';
  return path;
}

/* Two functions of each, with offsets of 32 and 64 bits where these differ. */
#define WRITE(name, off)                                                                   \
  ssize_t name(int fd, const void *bytes, size_t size, off offset) {                       \
    char path[LINE / 2], more[64];                                                         \
    const int fated = fate("write", path_of(fd, path));                                    \
    if (fated < 0) return -1;                                                              \
    const ssize_t done = NEXT(name)(fd, bytes, fated > 0 ? size / 2 : size, offset);       \
    if (fated > 0) die();                                                                  \
    snprintf(more, sizeof more, "%lld\t%zd", (long long)offset, done);                     \
    note("write", path, more);                                                             \
    return done;                                                                           \
  }
WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)

#define READ(name, off)                                                                    \
  ssize_t name(int fd, void *bytes, size_t size, off offset) {                             \
    char path[LINE / 2];                                                                   \
    return fate("read", path_of(fd, path)) ? -1 : NEXT(name)(fd, bytes, size, offset);     \
  }
READ(pread, off_t)
READ(pread64, off64_t)

#define SIZE(name, ...)                                                                    \
  {                                                                                        \
    char path[LINE / 2];                                                                   \
    if (fate("size", path_of(fd, path))) return -1;                                        \
    const int done = NEXT(name)(__VA_ARGS__);                                              \
    note("size", path, "");                                                                \
    return done;                                                                           \
  }
int ftruncate(int fd, off_t size) SIZE(ftruncate, fd, size)
int ftruncate64(int fd, off64_t size) SIZE(ftruncate64, fd, size)
int fallocate(int fd, int mode, off_t offset, off_t size) SIZE(fallocate, fd, mode, offset, size)
int fallocate64(int fd, int mode, off64_t offset, off64_t size) SIZE(fallocate64, fd, mode, offset, size)

int fsync(int fd) {
  char path[LINE / 2];
  if (fate("sync", path_of(fd, path))) return -1;
  note("sync", path, "");
  const int done = NEXT(fsync)(fd);
  note("synced", path, "");
  return done;
}

int rename(const char *from, const char *to) {
  if (fate("rename", from)) return -1;
  note("renaming", from, to);
  const int done = NEXT(rename)(from, to);
  note("rename", from, to);
  return done;
}

#define OPEN(name)                                                                         \
  int name(const char *path, int flags, ...) {                                             \
    va_list rest;                                                                          \
    va_start(rest, flags);                                                                 \
    const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                        \
    va_end(rest);                                                                          \
    if ((flags & O_CREAT) && fate("create", path)) return -1;                              \
    const int fd = NEXT(name)(path, flags, mode);                                          \
    if (flags & O_CREAT) note("create", path, "");                                         \
    return fd;                                                                             \
  }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
  if (fate("mkdir", path)) return -1;
  const int done = NEXT(mkdir)(path, mode);
  if (done == 0) note("mkdir", path, "");
  return done;
}

static const char *path_at(int fd, const char *name, char *path) {
  if (fd == AT_FDCWD || name[0] == '/') return name;
  char folder[LINE / 2];
  snprintf(path, LINE, "%s/%s", path_of(fd, folder), name);
  return path;
}

int unlinkat(int fd, const char *name, int flags) {
  char path[LINE];
  note("delete", path_at(fd, name, path), "");
  if (fate("delete", path_at(fd, name, path))) return -1;
  return NEXT(unlinkat)(fd, name, flags);
}

#define DELETE(name)                                                                       \
  int name(const char *path) {                                                             \
    note("delete", path, "");                                                              \
    if (fate("delete", path)) return -1;                                                   \
    return NEXT(name)(path);                                                               \
  }
DELETE(unlink)
DELETE(remove)
DELETE(rmdir)
