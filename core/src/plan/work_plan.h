#pragma once
#include <string>
#include <vector>

#include "plan/run_plan.h"
#include "slim/phase.hpp"

namespace slim {

/// What a run computes in one block, from headers alone.
struct PlannedWork {
  PhaseOperations operations;
  double weights = 0;  ///< elements that are rounded or copied
};

/// Counts the work of every block of the model, in the order of the plan, for all outputs together. Samples count with their largest length
/// (data.num_samples, data.max_seq_length).
std::vector<PlannedWork> count_work(const RunConfig&, const Model&, const std::vector<OutputPlan>&);

/// How fast this machine computes, on the threads that LibTorch uses.
struct MachineSpeed {
  double products = 1e11;  ///< floating-point operations per second of matrix products in fp32
  double forward = 1e11;   ///< the same of products of the model's dtype, as ops::linear() computes them
  double memory = 1e10;    ///< bytes per second, read and written, of a copy
};
/// Measures the processor, in less than a second.
MachineSpeed measure_machine(at::ScalarType dtype);

/// Estimates the seconds of each phase of a block at this speed.
PhaseSeconds estimate_seconds(const PlannedWork&, const MachineSpeed&);
double sum(const PhaseSeconds&);
/// Writes "forward passes 12.1 s, factors 3.0 s": phases of at least `least` seconds, the longest first.
std::string phases_text(const PhaseSeconds&, double least);

}  // namespace slim
