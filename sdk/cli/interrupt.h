#pragma once

namespace slim::cli {

/// From now on SIGINT and SIGTERM only set a flag; the second one ends the process at once (exit code 130).
void catch_interrupts();
/// True once a signal has come.
bool interrupted();

}  // namespace slim::cli
