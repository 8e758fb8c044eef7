#pragma once
#include <memory>
#include <string>

#include "commands/commands.h"

namespace slim::cli {

/// On stderr: a bar with the remaining time on a terminal, plain lines otherwise, only warnings when quiet.
/// cancelled() is true after a signal (interrupt.h).
std::unique_ptr<Progress> make_progress(bool quiet);

/// What a progress bar says.
struct ProgressLine {
  std::string phase;  ///< "quantizing"
  std::string state;  ///< "12/36, 1 min 10 s, 3 min 20 s left"
  std::string what;   ///< "model.layers.12"
  double share = 0;   ///< of the phase's work that is done
};
/// Writes a line of at most so many columns. Where there is little room the name of the step goes first, then the bar shrinks and goes, then the
/// phase: the count and the times stay.
std::string progress_line(const ProgressLine&, size_t columns);

}  // namespace slim::cli
