#pragma once
#include <memory>

#include "run/commands.h"

namespace slim::cli {

/// On stderr: a bar with the remaining time on a terminal, plain lines otherwise, only warnings when quiet.
/// cancelled() is true after a signal (interrupt.h).
std::unique_ptr<Progress> make_progress(bool quiet);

}  // namespace slim::cli
