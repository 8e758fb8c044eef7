#include <unistd.h>

#include <fstream>

#include "check.h"

namespace slim::conformance {

std::vector<Check> checks_for(slim_kind kind) {
  std::vector<Check> checks = library_checks();
  const auto add = [&](std::vector<Check> more) { checks.insert(checks.end(), more.begin(), more.end()); };
  if (kind == SLIM_ALGORITHM || kind == SLIM_BACKEND) add(option_checks());
  if (kind == SLIM_ALGORITHM) add(algorithm_checks());
  if (kind == SLIM_ADAPTER) add(adapter_checks());
  if (kind == SLIM_BACKEND) add(backend_checks());
  if (kind == SLIM_FORMAT) add(format_checks());
  return checks;
}

int64_t resident_kilobytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE) / 1024;
}

}  // namespace slim::conformance
