#include "interrupt.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "checkpoint/leftovers.h"
#include "output.h"
#include "plugin/guard.h"

namespace slim::cli {
namespace {

/// A run that has not stopped by then is ended: finished blocks are on the disk.
constexpr std::chrono::milliseconds kPatience{600};

volatile sig_atomic_t signals_seen = 0;
/// What every last word ends with: how to go on, if that is possible.
const char* advice = "\n";
/// Whoever leaves kRunning first decides how the process ends.
enum Stage : int { kRunning, kEnded, kEnding };
std::atomic<int> stage = kRunning;
int wake_pipe[2] = {-1, -1};
/// The thread that waits for a signal has begun to: it holds nothing any more that a copy of the process (fork) would find taken.
std::atomic<bool> watching = false;

/// Async-signal-safe.
void say(const char* text) {
  const ssize_t written = write(STDERR_FILENO, text, strlen(text));
  static_cast<void>(written);  // there is nobody to tell
}

/// Only async-signal-safe calls in here.
void on_signal(int) {
  if (signals_seen) _exit(kInterrupted);
  signals_seen = 1;
  say("\nslim: stopping at the next safe point; once more stops at once\n");
  const ssize_t written = write(wake_pipe[1], "x", 1);
  static_cast<void>(written);
}

/// Waits for the first signal in a thread of its own, and ends the process if the run does not end in time.
void watch() {
  watching = true;
  watching.notify_one();
  char byte = 0;
  while (read(wake_pipe[0], &byte, 1) < 0 && errno == EINTR) {
  }
  std::this_thread::sleep_for(kPatience);
  int running = kRunning;
  if (!stage.compare_exchange_strong(running, kEnding)) return;
  remove_leftovers();
  say("slim: error: interrupted");
  say(advice);
  _exit(kInterrupted);
}

const char* name_of(int signal) {
  switch (signal) {
    case SIGSEGV:
      return "SIGSEGV";
    case SIGBUS:
      return "SIGBUS";
    case SIGFPE:
      return "SIGFPE";
    case SIGILL:
      return "SIGILL";
    default:
      return "SIGABRT";
  }
}

/// Names the plugin, then dies of the same signal. Only async-signal-safe calls in here.
void on_crash(int signal) {
  say("\nslim: error: crashed with ");
  say(name_of(signal));
  const char* call = current_call();
  if (*call) {
    say(" in ");
    say(call);
  }
  say(advice);
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
  raise(signal);
}

/// A plugin that calls exit() would end the run with the code of success.
void on_exit() {
  if (stage != kRunning) return;
  say("\nslim: error: the process was ended by exit()");
  if (const char* call = current_call(); *call) {
    say(" in ");
    say(call);
  }
  say(advice);
  _exit(kFailed);
}

void handle(int signal, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

/// A stack of its own, so that an overflow of the usual one can be told too.
void use_other_stack() {
  static char memory[64 * 1024];
  stack_t stack{};
  stack.ss_sp = memory;
  stack.ss_size = sizeof memory;
  sigaltstack(&stack, nullptr);
}

}  // namespace

void catch_interrupts(bool resumable) {
  if (resumable) advice = "; the blocks that were finished, if any, are kept: go on with --resume\n";
  std::atexit(on_exit);
  if (pipe2(wake_pipe, O_CLOEXEC) == 0) {
    std::thread(watch).detach();
    watching.wait(false);
  }
  handle(SIGINT, on_signal, SA_RESTART);
  handle(SIGTERM, on_signal, SA_RESTART);
  use_other_stack();
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT})
    handle(signal, on_crash, SA_ONSTACK | SA_NODEFER);
  signal(SIGXFSZ, SIG_IGN);  // a file over the limit is an error of write(), like a full disk
}

void run_has_ended() {
  int found = kRunning;
  if (!stage.compare_exchange_strong(found, kEnded) && found == kEnding)
    pause();  // the other thread ends the process
}

bool interrupted() { return signals_seen != 0; }

}  // namespace slim::cli
