// The program `slim`: prepares the process for LibTorch, then loads the command line, which brings LibTorch with it. What LibTorch's
// OpenMP reads of the environment it reads when it is loaded, which for a program that links it is before main().
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace {

/// Threads that wait for work look for it some hundredths of a millisecond, then sleep. The default of some milliseconds takes the
/// processor away from whatever else runs: from the reader and the writer of slim itself, too.
void let_waiting_threads_sleep() {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  setenv("GOMP_SPINCOUNT", "500", /*overwrite=*/0);
}

}  // namespace

int main(int argc, char** argv) {
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
