// The program `slim`: prepares the process for LibTorch, then loads the command line, which brings LibTorch with it. What LibTorch's
// OpenMP reads of the environment it reads when it is loaded, which for a program that links it is before main().
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

namespace {

/// Threads that wait for work look for it some hundredths of a millisecond, then sleep. The default of some milliseconds takes the
/// processor away from whatever else runs: from the reader and the writer of slim itself, too.
void let_waiting_threads_sleep() {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  setenv("GOMP_SPINCOUNT", "500", /*overwrite=*/0);
}

/// Whoever starts a program may close its standard files; the next that is opened would then be taken for one of them.
void open_standard_files() {
  int file = open("/dev/null", O_RDWR);
  while (file >= 0 && file <= STDERR_FILENO) file = open("/dev/null", O_RDWR);
  if (file > STDERR_FILENO) close(file);
}

/// Memory may end where nobody can hand an error on: while LibTorch is loaded, or in a thread of its own.
[[noreturn]] void end_without_memory() {
  try {
    if (const std::exception_ptr error = std::current_exception()) std::rethrow_exception(error);
  } catch (const std::bad_alloc&) {
    constexpr char kMessage[] =
        "slim: error: the process may not have as much memory as it needs; raise its limit (ulimit -v)\n";
    _exit(write(STDERR_FILENO, kMessage, sizeof kMessage - 1) < 0 ? 2 : 1);
  } catch (...) {
  }
  std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  std::set_terminate(end_without_memory);
  open_standard_files();
  let_waiting_threads_sleep();
  void* const library = dlopen("libslim_cli.so", RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    std::fprintf(stderr, "slim: %s; install slim anew, or LibTorch where slim was built with it\n",
                 dlerror());
    return 1;
  }
  using Main = int (*)(int, char**);
  return reinterpret_cast<Main>(dlsym(library, "slim_main"))(argc, argv);
}
