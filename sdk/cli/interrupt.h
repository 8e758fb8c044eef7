#pragma once

namespace slim::cli {

/// From now on SIGINT and SIGTERM set a flag, and a second later end what is still running (exit code 130), without what is of no use
/// then; the second signal ends the process at once. Crashes, and exit() before run_has_ended(), name the plugin that was called.
/// `resumable`: finished blocks of what runs can be gone on with.
void catch_interrupts(bool resumable);
/// The run has ended by itself: nothing ends it any more.
void run_has_ended();
/// True once a signal has come.
bool interrupted();

}  // namespace slim::cli
