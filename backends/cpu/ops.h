#pragma once
#include <string>
#include <vector>

namespace slim::cpu {

/// Names of the `slim::` operators that have a kernel here.
const std::vector<std::string>& accelerated_ops();

/// Instruction sets that this processor can run, best first; the last is "portable".
std::vector<std::string> instruction_sets();
/// Chooses the kernels of all further calls: one of instruction_sets().
void use_instruction_set(const std::string& name);

}  // namespace slim::cpu
