#pragma once
#include <string>

#include "commands/commands.h"
#include "slim/status.hpp"

namespace slim::cli {

/// Exit codes: 0 done, 1 a failed run, 2 wrong usage, 3 verification failed, 130 interrupted.
inline constexpr int kDone = 0, kFailed = 1, kUsage = 2, kNotVerified = 3, kInterrupted = 130;
int exit_code(const Status&);

/// One line on stderr, and the exit code.
int fail(const Status&);
/// A result on stdout, as text or JSON; fails if it cannot be written.
int print(const std::string& text);
int print(const Result<Report>&, bool json);

}  // namespace slim::cli
