#include "interrupt.h"

#include <signal.h>
#include <unistd.h>

#include "output.h"

namespace slim::cli {
namespace {

volatile sig_atomic_t signals_seen = 0;

/// Only async-signal-safe calls in here.
void on_signal(int) {
  if (signals_seen) _exit(kInterrupted);
  signals_seen = 1;
  static constexpr char kMessage[] = "\nslim: stopping at the next safe point; once more stops at once\n";
  const ssize_t written = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
  static_cast<void>(written);  // there is nobody to tell
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGXFSZ,
         SIG_IGN);  // a file over the limit is an error of write(), after which the output folder is removed
}

bool interrupted() { return signals_seen != 0; }

}  // namespace slim::cli
