#include "output.h"

#include <algorithm>
#include <cstdio>

#include "interrupt.h"
#include "util/text.h"

namespace slim::cli {

int exit_code(const Status& status) {
  switch (status.code()) {
    case Code::kOk:
      return kDone;
    case Code::kInvalidArgument:
      return kUsage;
    case Code::kVerification:
      return kNotVerified;
    case Code::kCancelled:
      return kInterrupted;
    default:
      return kFailed;
  }
}

int fail(const Status& status) {
  run_has_ended();
  std::string line = terminal_text(status.message());
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "slim: error: %s\n", line.c_str());
  return exit_code(status);
}

int print(const std::string& text) {
  run_has_ended();
  const bool written =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  return written ? kDone : fail(Status(Code::kIo, "cannot write the result to standard output"));
}

int print(const Result<Report>& report, bool json) {
  if (!report.ok()) return fail(report.status());
  return print(json ? report->json + "\n" : terminal_text(report->text));
}

}  // namespace slim::cli
