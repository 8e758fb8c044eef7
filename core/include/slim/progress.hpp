#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "slim/export.hpp"

namespace slim {

/// Where a run tells how far it is. Implemented by the caller; called from the run's own thread, one call at a time. What it
/// throws ends the run with an error.
class SLIM_API Progress {
 public:
  virtual ~Progress();
  /// A phase ("quantizing") of this many steps starts; 0: nobody knows how many.
  virtual void begin(std::string_view phase, int64_t steps) = 0;
  /// Tells, after begin(), what share of the phase's work each of its steps is expected to be: not negative, in any unit. Without it, or with
  /// another number of entries, all steps count alike. The default does nothing.
  virtual void expect(const std::vector<double>& work) {}
  /// Names the step that is being worked on, before it is done ("model.layers.3"). The default does nothing.
  virtual void working_on(std::string_view what) {}
  /// One more step of the phase is done; `what` names it ("model.layers.3").
  virtual void step(std::string_view what) = 0;
  /// Something that the user should know, and that does not stop the run: one line.
  virtual void warn(std::string_view message) = 0;
  /// Asked often. True: stop at the next safe point with Code::kCancelled; no output folder is left.
  virtual bool cancelled() = 0;
};

/// A result for people and for machines.
struct Report {
  std::string text;  ///< lines; ends with a line break
  std::string json;  ///< one JSON object, UTF-8
};

}  // namespace slim
