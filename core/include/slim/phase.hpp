#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "slim/export.hpp"

namespace slim {

/// What a run spends its time on. A run's report gives seconds of each.
enum class Phase : uint8_t {
  kReading,      ///< weights from the checkpoint, beside everything else
  kForward,      ///< the model's forward passes over calibration batches
  kStatistics,   ///< sums over activations
  kFactor,       ///< factors of Gram matrices
  kScaleSearch,  ///< scales between activations and weights
  kRangeSearch,  ///< ranges of groups
  kSweep,        ///< rounding and pruning with error feedback
  kRounding,     ///< all other rounding, and measuring its error
  kEncoding,     ///< codes into the tensors of a format, beside everything else
  kWriting,      ///< to the output, beside everything else
  kProof,        ///< that folded scales keep the block's function
  kSpilling      ///< activations to files and back
};
constexpr size_t kPhases = 12;  ///< of the values of Phase
/// Gives the word for a phase in reports: "range search".
SLIM_API std::string_view phase_name(Phase);

/// Seconds by phase, indexed by Phase.
using PhaseSeconds = std::array<double, kPhases>;
/// Reads the seconds that PhaseTimers of this process have counted so far. Threads that work beside each other count each for itself. Safe from
/// any thread.
SLIM_API PhaseSeconds phase_seconds();

/// Floating-point operations by phase, indexed by Phase; a product and a sum are two.
struct SLIM_API PhaseOperations {
  std::array<double, kPhases> of{};  ///< by phase
  /// Adds operations to a phase.
  void add(Phase phase, double operations) { of[static_cast<size_t>(phase)] += operations; }
  /// The operations of a phase.
  double operator[](Phase phase) const { return of[static_cast<size_t>(phase)]; }
};

/// Counts the wall time of its life for one phase. The timer that was running in this thread, if there is one, stands still meanwhile, so that
/// phases of one thread add up to its time.
class SLIM_API PhaseTimer {
 public:
  explicit PhaseTimer(Phase);  ///< starts
  ~PhaseTimer();               ///< ends, and lets the timer that stood still go on
  PhaseTimer(const PhaseTimer&) = delete;
  PhaseTimer& operator=(const PhaseTimer&) = delete;

 private:
  Phase phase_;
  PhaseTimer* outer_;
  int64_t begin_;
};

}  // namespace slim
